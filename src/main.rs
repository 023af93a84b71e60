//! The stock binary: every ready-made filter, and nothing else.

use millpond::Millpond;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Millpond::new().run()
}
