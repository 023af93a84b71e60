//! Bodies of any length whose every byte is known from its offset, so that both ends compare instead of hashing: a
//! mismatch names the offset, which a checksum cannot, and an unoptimised build keeps up with the proxy.

use std::sync::LazyLock;

/// A prime, so that no block lost, doubled or swapped by the proxy can line up with the pattern.
const PERIOD: usize = 1_048_573;
/// The longest slice [`bytes`] gives.
const SLICE: usize = 256 * 1024;

static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let one: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(PERIOD)
    .collect();
    one.iter().chain(&one[..SLICE]).copied().collect()
});

/// The bytes of the pattern from `offset`: `len` of them, or as many as one slice holds.
pub fn bytes(offset: u64, len: u64) -> &'static [u8] {
    let start = (offset % PERIOD as u64) as usize;
    &TABLE[start..start + len.min(SLICE as u64) as usize]
}

/// The first `len` bytes.
pub fn body(len: u64) -> Vec<u8> {
    let mut all = Vec::with_capacity(len as usize);
    while (all.len() as u64) < len {
        let have = all.len() as u64;
        all.extend_from_slice(bytes(have, len - have));
    }
    all
}

/// Compares what arrives with the pattern.
#[derive(Debug, Default)]
pub struct Pattern {
    /// So many bytes have come and were right.
    pub offset: u64,
}

impl Pattern {
    /// The next bytes that arrived.
    ///
    /// # Panics
    /// At the first wrong byte, naming its offset.
    pub fn check(&mut self, mut received: &[u8]) {
        while !received.is_empty() {
            let expected = bytes(self.offset, received.len() as u64);
            let (now, later) = received.split_at(expected.len());
            if now != expected {
                let at = now.iter().zip(expected).position(|(a, b)| a != b).unwrap_or_default();
                panic!("the body differs from what was sent at byte {}", self.offset + at as u64);
            }
            self.offset += now.len() as u64;
            received = later;
        }
    }
}
