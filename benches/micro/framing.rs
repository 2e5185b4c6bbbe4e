//! Framing: the cost of finding requests in the bytes of one read.

mod quick;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

use ds::buffer::Buffer;
use framing::{Found, Frame, Framing, Prefix};

/// The default buffer size.
const CAPACITY: usize = 5_120;

/// Bytes per request, including its delimiter or prefix.
const REQUEST: usize = 64;

/// Extracts all frames from `bytes` as a worker does. The bytes arrive in pieces of `step` bytes.
/// Returns the number of frames.
fn frames(framing: &Framing, buffer: &mut Buffer, bytes: &[u8], step: usize) -> usize {
    let mut count = 0;
    for piece in bytes.chunks(step) {
        buffer.spare(step)[..piece.len()].copy_from_slice(piece);
        buffer.commit(piece.len());
        loop {
            let mut scanned = buffer.scanned();
            let found = framing.find(buffer.held(), &mut scanned, buffer.capacity());
            buffer.set_scanned(scanned);
            let Found::Frame(bounds) = found else { break };
            black_box(&buffer.held()[bounds.skip..bounds.skip + bounds.body]);
            buffer.consume(bounds.total);
            count += 1;
        }
    }
    buffer.consume(buffer.len());
    count
}

fn framings(criterion: &mut Criterion) {
    let lines = || [&[b'a'; REQUEST - 1][..], b"\n"].concat().repeat(CAPACITY / REQUEST);
    let prefixed = || [&[0, 62][..], &[b'a'; 62]].concat().repeat(CAPACITY / REQUEST);
    let no_end = || vec![b'a'; CAPACITY];
    let newline = Framing::Delimited(b'\n');
    let u16 = Framing::LengthPrefixed { prefix: Prefix::U16Be, limit: Framing::NO_LIMIT };
    let fixed = Framing::custom(|held| match held.len() {
        REQUEST.. => Frame::Complete(REQUEST),
        _ => Frame::Partial,
    });
    let naive = Framing::custom(|held| match held.iter().position(|&byte| byte == b'\n') {
        Some(at) => Frame::Complete(at + 1),
        None => Frame::Partial,
    });
    let mut group = criterion.benchmark_group("framing, 5,120 bytes");
    group.throughput(Throughput::Bytes(CAPACITY as u64));
    for (name, framing, bytes, step, found) in [
        ("Delimited, 80 lines", &newline, lines(), CAPACITY, 80),
        ("Delimited, 80 lines in pieces of 50", &newline, lines(), 50, 80),
        ("Delimited, no line", &newline, no_end(), CAPACITY, 0),
        ("Delimited, no line in pieces of 50", &newline, no_end(), 50, 0),
        ("LengthPrefixed, 80 frames", &u16, prefixed(), CAPACITY, 80),
        ("Custom, 80 records", &fixed, lines(), CAPACITY, 80),
        ("Custom, 80 lines, byte by byte", &naive, lines(), CAPACITY, 80),
    ] {
        let mut buffer = Buffer::with_capacity(CAPACITY);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                assert_eq!(frames(framing, &mut buffer, black_box(&bytes), step), found);
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = all;
    config = quick::quick(20);
    targets = framings
}
criterion_main!(all);
