//! What a filter costs: `cargo bench --bench hooks`.
//!
//! Chains of 1, 5 and 20 filters, of which none uses a hook, or each has one trivial `request_filter` or `body_filter`.
//! Times are for one visit of the whole chain; the difference between 20 and 1, by 19, is the price of one call.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use millpond::chain::{Chain, Filter, Walk};
use millpond::prelude::*;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

// As in the stock binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Leaves all hooks alone.
struct Idle;

impl UpstreamPhases for Idle {
    type Ctx = ();
    fn new_ctx(&self) {}
}

/// Looks at the request.
struct LooksAtRequest;

impl UpstreamPhases for LooksAtRequest {
    type Ctx = ();
    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session<'_>, _ctx: &mut ()) -> Result<Flow> {
        black_box(&session.request().method);
        Ok(Flow::Continue)
    }
}

/// Counts the body's bytes.
struct CountsBody;

impl UpstreamPhases for CountsBody {
    type Ctx = u64;
    fn new_ctx(&self) -> u64 {
        0
    }

    async fn body_filter(&self, _session: &mut Session<'_>, body: &mut Bufs, bytes: &mut u64) -> Result<()> {
        *bytes += body.len() as u64;
        Ok(())
    }
}

fn hooks(criterion: &mut Criterion) {
    measure(criterion, "idle", || Filter::new("idle", Idle));
    measure(criterion, "request_filter", || Filter::new("request", LooksAtRequest));
    measure(criterion, "body_filter", || Filter::new("body", CountsBody));
}

fn measure(criterion: &mut Criterion, name: &str, filter: impl Fn() -> Arc<Filter>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without I/O");
    let mut group = criterion.benchmark_group(name);
    for filters in [0, 1, 5, 20] {
        let chain = Arc::new(Chain::new((0..filters).map(|_| filter())));
        // One request in 16, the first of them, has its filters' times measured.
        drop(Walk::new(&chain));
        let mut walk = Walk::new(&chain);
        group.bench_function(BenchmarkId::from_parameter(filters), |bencher| {
            bencher.iter_custom(|times| runtime.block_on(walk_often(&mut walk, times)));
        });
    }
    group.finish();
}

/// Through the request hooks and the body hooks, so many times.
async fn walk_often(walk: &mut Walk, times: u64) -> Duration {
    let mut run = Bufs::from_chunk(Bytes::from_static(b"body"), false);
    let started = Instant::now();
    for _ in 0..times {
        black_box(walk.request_filter().await).expect("no filter refuses");
        black_box(walk.body_filter(&mut run).await).expect("no filter refuses");
    }
    started.elapsed()
}

criterion_group!(benches, hooks);
criterion_main!(benches);
