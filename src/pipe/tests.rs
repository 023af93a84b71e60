//! The two halves with real tasks and a real disk.

use super::*;
use futures::FutureExt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Wake, Waker};
use tempfile::TempDir;

const BLOCK: usize = 1024;

fn conf() -> PipeConf {
    PipeConf {
        buffering: true,
        buffer_size: BLOCK,
        buffers_number: 4,
        buffers_size: BLOCK,
        busy_buffers_size: 2 * BLOCK,
        max_temp_file_size: 1 << 20,
        temp_file_write_size: 2 * BLOCK,
    }
}

fn limits() -> (Arc<Limits>, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Limits::new(1 << 20, 1 << 30, directory.path()), directory)
}

fn body(len: usize) -> Bytes {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Fill buffers with `body`, as an upstream would that always has more to send.
async fn write(writer: &mut PipeWriter, body: &[u8]) -> Result<()> {
    let mut left = body;
    while !left.is_empty() {
        let mut buffer = writer.buffer().await?;
        let (now, later) = left.split_at(left.len().min(buffer.capacity()));
        buffer.extend_from_slice(now);
        writer.commit(buffer);
        left = later;
    }
    Ok(())
}

/// Take all, each run accepted before the next.
async fn read_all(reader: &mut PipeReader) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let mut bufs = reader.read().await?;
        all.extend_from_slice(&bufs.take_all());
        reader.accepted();
        if bufs.is_last() {
            return Ok(all);
        }
    }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test]
async fn a_client_that_keeps_up_gets_every_byte_without_copy_or_file() {
    let (limits, _directory) = limits();
    let (mut writer, mut reader) = pipe(&conf(), &limits);
    for _ in 0..100 {
        let mut buffer = writer.buffer().await.unwrap();
        buffer.extend_from_slice(&body(700));
        let at = buffer.as_ptr();
        writer.commit(buffer);
        let bufs = reader.read().await.unwrap();
        assert_eq!(bufs.iter().next().unwrap().as_ptr(), at);
        assert_eq!(bufs.len(), 700);
        drop(bufs);
        reader.accepted();
    }
    assert_eq!((reader.stats().spills, reader.stats().bytes_in), (0, 70_000));
    assert!(limits.memory_bytes() <= 2 * BLOCK);
}

#[tokio::test]
async fn joined_in_one_task_a_fast_client_needs_no_file() {
    let (limits, _directory) = limits();
    let (mut writer, mut reader) = pipe(&conf(), &limits);
    let sent = body(300_000);
    let upstream = async {
        write(&mut writer, &sent).await.unwrap();
        writer.finish(None);
    };
    let ((), received) = futures::join!(upstream, read_all(&mut reader));
    assert_eq!(received.unwrap(), sent);
    let stats = reader.stats();
    assert_eq!((stats.spills, limits.memory_bytes()), (0, 0));
    assert!(stats.memory_high_water <= 4 * BLOCK);
}

#[tokio::test]
async fn a_client_that_takes_nothing_does_not_hold_the_upstream() {
    let (limits, _directory) = limits();
    let (mut writer, mut reader) = pipe(&conf(), &limits);
    let sent = body(500_000);
    let first = reader.read();
    assert!(first.now_or_never().is_none());
    write(&mut writer, &sent).await.unwrap();
    writer.finish(None);
    assert!(reader.writer_finished_at().is_some() && !reader.is_complete());
    assert!(limits.memory_bytes() <= 4 * BLOCK && limits.temp_file_bytes() > 490_000);

    assert_eq!(read_all(&mut reader).await.unwrap(), sent);
    assert!(reader.is_complete());
    let stats = reader.stats();
    assert!(stats.spilled_bytes > 490_000 && stats.file_high_water > 490_000 && stats.backpressure > Duration::ZERO);
    assert_eq!(limits.memory_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_halves_may_live_in_two_tasks() {
    let (limits, _directory) = limits();
    for unaccepted in [1, 3, 50] {
        let (mut writer, mut reader) = pipe(&conf(), &limits);
        let sent = body(1_000_000);
        let expected = sent.clone();
        let upstream = tokio::spawn(async move {
            write(&mut writer, &sent).await.unwrap();
            writer.finish(None);
        });
        let client = tokio::spawn(async move {
            let mut all = Vec::new();
            let mut run = 0;
            loop {
                let mut bufs = reader.read().await.unwrap();
                all.extend_from_slice(&bufs.take_all());
                run += 1;
                if run % unaccepted == 0 {
                    tokio::task::yield_now().await;
                }
                reader.accepted();
                if bufs.is_last() {
                    return all;
                }
            }
        });
        upstream.await.unwrap();
        assert_eq!(client.await.unwrap(), expected);
    }
    assert_eq!(limits.memory_bytes(), 0);
}

#[tokio::test]
async fn without_a_usable_disk_the_upstream_waits_and_nothing_is_lost() {
    let limits = Limits::new(1 << 20, 1 << 30, "/nonexistent/millpond");
    let (mut writer, mut reader) = pipe(&conf(), &limits);
    let sent = body(50_000);
    let expected = sent.clone();
    let upstream = tokio::spawn(async move {
        write(&mut writer, &sent).await.unwrap();
        writer.finish(None);
    });
    while reader.stats().disk_errors == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(read_all(&mut reader).await.unwrap(), expected);
    upstream.await.unwrap();
    let stats = reader.stats();
    assert_eq!((stats.disk_errors, stats.spills, stats.spilled_bytes), (1, 0, 0));
}

#[tokio::test]
async fn without_a_file_the_writer_waits_until_the_client_has_accepted() {
    let (limits, _directory) = limits();
    let (mut writer, mut reader) = pipe(&PipeConf { max_temp_file_size: 0, ..conf() }, &limits);
    write(&mut writer, &body(4 * BLOCK)).await.unwrap();
    let woken = Arc::new(Counter::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    assert!(writer.poll_buffer(&mut cx).is_pending());
    let bufs = reader.read().await.unwrap();
    assert!(bufs.len() <= 2 * BLOCK, "no more than busy_buffers_size");
    assert!(reader.read().now_or_never().is_none());
    assert_eq!(woken.0.load(SeqCst), 0);
    reader.accepted();
    assert_eq!(woken.0.load(SeqCst), 1);
    assert!(writer.poll_buffer(&mut cx).is_ready());
}

#[tokio::test]
async fn unbuffered_nothing_is_held_beyond_one_buffer() {
    let (limits, _directory) = limits();
    let (mut writer, mut reader) = pipe(&PipeConf { buffering: false, ..conf() }, &limits);
    let mut header = BytesMut::with_capacity(BLOCK);
    header.extend_from_slice(&body(BLOCK));
    writer.preread(header);
    assert!(writer.buffer().now_or_never().is_none());
    assert_eq!(reader.read().await.unwrap().len(), BLOCK);
    assert!(writer.buffer().now_or_never().is_none());
    reader.accepted();
    assert_eq!(writer.buffer().await.unwrap().capacity(), BLOCK);
    assert_eq!(reader.stats().memory_high_water, BLOCK);
}

#[tokio::test]
async fn what_was_read_with_the_header_comes_first_and_its_room_is_used() {
    let (limits, _directory) = limits();
    let (mut writer, mut reader) = pipe(&conf(), &limits);
    let mut received = BytesMut::with_capacity(BLOCK);
    received.extend_from_slice(b"header\r\n\r\nbody");
    drop(received.split_to(10));
    let end = received.as_ptr_range().end;
    writer.preread(received);
    let mut buffer = writer.buffer().await.unwrap();
    assert_eq!(buffer.as_ptr(), end);
    buffer.extend_from_slice(b", more");
    writer.commit(buffer);
    writer.finish(None);
    let mut bufs = reader.read().await.unwrap();
    assert_eq!((bufs.take_all(), bufs.is_last()), (Bytes::from_static(b"body, more"), true));
}

#[tokio::test]
async fn a_fast_upstream_is_given_larger_buffers() {
    let (limits, _directory) = limits();
    let conf = PipeConf { buffers_number: 16, busy_buffers_size: 8 * BLOCK, ..conf() };
    let (mut writer, mut reader) = pipe(&conf, &limits);
    let mut sizes = Vec::new();
    for _ in 0..6 {
        let mut buffer = writer.buffer().await.unwrap();
        sizes.push(buffer.capacity() / BLOCK);
        buffer.resize(buffer.capacity(), 0);
        writer.commit(buffer);
        drop(reader.read().await.unwrap());
        reader.accepted();
    }
    // Not beyond one write to the file.
    assert_eq!(sizes, [1, 2, 2, 2, 2, 2]);
}

#[tokio::test]
async fn a_body_that_is_known_to_be_long_is_given_larger_buffers_at_once() {
    let (limits, _directory) = limits();
    let conf = PipeConf { buffers_number: 16, busy_buffers_size: 8 * BLOCK, ..conf() };
    for (expected, blocks) in [(1, 1), (BLOCK + 1, 2), (100 * BLOCK, 2)] {
        let (mut writer, _reader) = pipe(&conf, &limits);
        writer.expect(expected as u64);
        assert_eq!(writer.buffer().await.unwrap().capacity(), blocks * BLOCK, "{expected}");
    }
}

#[tokio::test]
async fn a_buffer_that_was_lost_is_made_up_for() {
    let (limits, _directory) = limits();
    let (mut writer, mut reader) = pipe(&conf(), &limits);
    for _ in 0..20 {
        drop(writer.buffer().await.unwrap());
    }
    assert_eq!(limits.memory_bytes(), BLOCK);
    write(&mut writer, b"here").await.unwrap();
    writer.finish(None);
    assert_eq!(read_all(&mut reader).await.unwrap(), b"here");
}

#[tokio::test]
async fn a_writer_that_is_dropped_leaves_a_truncated_message() {
    let (limits, _directory) = limits();
    let (mut writer, mut reader) = pipe(&conf(), &limits);
    write(&mut writer, b"half").await.unwrap();
    drop(writer);
    assert_eq!(reader.read().await.unwrap().take_all(), "half");
    assert_eq!(reader.read().await.unwrap_err().kind(), ErrorKind::Truncated);
    assert_eq!(reader.read().await.unwrap_err().kind(), ErrorKind::Truncated);
    assert!(!reader.is_complete() && reader.writer_finished_at().is_some());
}

#[tokio::test]
async fn a_failure_comes_behind_everything_that_was_spilled() {
    let (limits, _directory) = limits();
    let (mut writer, mut reader) = pipe(&conf(), &limits);
    let sent = body(50_000);
    write(&mut writer, &sent).await.unwrap();
    writer.fail(Error::new(ErrorKind::ReadTimeout, "the upstream fell silent"));
    let mut received = Vec::new();
    let error = loop {
        match reader.read().await {
            Ok(mut bufs) => received.extend_from_slice(&bufs.take_all()),
            Err(error) => break error,
        }
        reader.accepted();
    };
    assert_eq!(error.to_string(), "the upstream fell silent");
    assert_eq!(received, sent);
}

#[tokio::test]
async fn the_writer_learns_that_the_reader_is_gone_wherever_it_waits() {
    let (limits, _directory) = limits();
    let (mut writer, reader) = pipe(&PipeConf { max_temp_file_size: 0, ..conf() }, &limits);
    write(&mut writer, &body(4 * BLOCK)).await.unwrap();
    let woken = Arc::new(Counter::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    assert!(writer.poll_buffer(&mut cx).is_pending());
    assert!(writer.poll_reader_gone(&mut cx).is_pending());
    drop(reader);
    assert_eq!(woken.0.load(SeqCst), 2);
    assert!(writer.poll_reader_gone(&mut cx).is_ready());
    assert_eq!(writer.buffer().await.unwrap_err().kind(), ErrorKind::ClientGone);
    assert_eq!(limits.memory_bytes(), 0);
}

#[tokio::test]
async fn a_driver_pushes_its_own_chunks_without_a_copy() {
    let (limits, _directory) = limits();
    let (mut writer, mut reader) = pipe(&conf(), &limits);
    assert_eq!(writer.room().await.unwrap(), BLOCK);
    let chunk = body(900);
    writer.push(chunk.clone());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    writer.finish(Some(trailers));
    let mut bufs = reader.read().await.unwrap();
    assert_eq!(bufs.pop().unwrap().as_ptr(), chunk.as_ptr());
    assert!(bufs.is_last() && reader.is_complete());
    assert_eq!(reader.trailers().unwrap()["grpc-status"], "0");
    assert!(reader.trailers().is_none());
}

#[tokio::test]
async fn tiny_chunks_are_gathered() {
    let (limits, _directory) = limits();
    let (mut writer, mut reader) = pipe(&conf(), &limits);
    for _ in 0..500 {
        writer.room().await.unwrap();
        writer.push(Bytes::from_static(b"x"));
    }
    writer.finish(None);
    let bufs = reader.read().await.unwrap();
    assert_eq!((bufs.len(), bufs.iter().count()), (500, 1));
}

#[test]
fn all_is_given_back_when_the_halves_are_dropped() {
    let (limits, _directory) = limits();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let halves = runtime.block_on(async {
        let (mut writer, mut reader) = pipe(&conf(), &limits);
        write(&mut writer, &body(100_000)).await.unwrap();
        drop(reader.read().await.unwrap());
        (writer, reader)
    });
    assert!(limits.memory_bytes() > 0 && limits.temp_file_bytes() > 0);
    drop(halves);
    // Waits for the blocking threads, which may still be at a write.
    drop(runtime);
    assert_eq!((limits.memory_bytes(), limits.temp_file_bytes()), (0, 0));
}

#[test]
fn the_halves_can_be_sent() {
    fn sendable<T: Send + Unpin>(_: T) {}
    let (writer, reader) = pipe(&conf(), &Limits::new(0, 0, ""));
    sendable(writer);
    sendable(reader);
    fn future<F: Future + Send>(_: F) {}
    let (mut writer, mut reader) = pipe(&conf(), &Limits::new(0, 0, ""));
    future(writer.buffer());
    future(reader.read());
}
