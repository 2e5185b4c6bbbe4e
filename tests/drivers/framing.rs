//! Fuzz driver for the framing. A stream arrives in pieces of any size, and the framing searches
//! the buffered bytes. It must find the same bodies as a naive framing of the whole stream.

use arbtest::arbitrary::{Result, Unstructured};

use crate::ds::buffer::Buffer;
use crate::framing::{Found, Frame, Framing, Prefix};

#[path = "reference.rs"]
mod reference;

pub(crate) use reference::Rules;
use reference::{Cuts, Ending, Outcome};

pub(crate) fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let rules = Rules::any(u)?;
    let capacity = u.int_in_range(1..=300)?;
    let mut cuts = Cuts::any(u)?;
    let stream = rules.stream(u, capacity, 4096)?;
    check(rules, capacity, &stream, || cuts.next().into());
    Ok(())
}

/// Buffers, frames and consumes `stream` as a worker does, in pieces of the sizes that `cut`
/// returns.
pub(crate) fn check(rules: Rules, capacity: usize, stream: &[u8], cut: impl FnMut() -> usize) {
    let (outcome, held) = frame_stream(&rules.framing(), capacity, stream, cut);
    let expected = rules.outcome(stream, capacity);
    assert_eq!(outcome, expected, "{rules:?} of {capacity} bytes");
    if expected.ending == Ending::Partial {
        assert_eq!(held, stream.len() - expected.rest);
    }
}

/// Returns the outcome and the number of bytes that are still held at the end.
fn frame_stream(
    framing: &Framing,
    capacity: usize,
    stream: &[u8],
    mut cut: impl FnMut() -> usize,
) -> (Outcome, usize) {
    let (mut buffer, mut read) = (Buffer::with_capacity(capacity), 0);
    let (mut bodies, mut rest) = (Vec::new(), 0);
    let ending = loop {
        let mut body = None;
        match find_frame(framing, &mut buffer) {
            Found::Frame(bounds) => body = Some((bounds.skip, bounds.body, bounds.total)),
            Found::Partial if !buffer.is_full() && read == stream.len() => break Ending::Partial,
            Found::Partial if !buffer.is_full() => {
                let spare = buffer.spare(cut().max(1));
                let count = spare.len().min(stream.len() - read);
                spare[..count].copy_from_slice(&stream[read..read + count]);
                buffer.commit(count);
                read += count;
            }
            Found::Partial if framing.is_stream() => body = Some((0, capacity, capacity)),
            Found::Partial | Found::Overlong => break Ending::Overlong,
            Found::Invalid => break Ending::Invalid,
            Found::Panicked => panic!("no framing here panics"),
        }
        if let Some((skip, body, total)) = body {
            assert!(total > 0, "an empty frame would be found forever");
            bodies.push(buffer.held()[skip..skip + body].to_vec());
            buffer.consume(total);
            rest += total;
        }
    };
    (Outcome { bodies, rest, ending }, buffer.len())
}

/// Searches the held bytes, beginning at the position that an earlier search has stored. A search
/// from the start must give the same result.
fn find_frame(framing: &Framing, buffer: &mut Buffer) -> Found {
    let mut scanned = buffer.scanned();
    let found = framing.find(buffer.held(), &mut scanned, buffer.capacity());
    assert_eq!(found, framing.find(buffer.held(), &mut 0, buffer.capacity()));
    assert!((buffer.scanned()..=buffer.len()).contains(&scanned));
    if found == Found::Partial && matches!(framing, Framing::Delimited(_)) {
        assert_eq!(scanned, buffer.len(), "no byte is searched twice");
    }
    buffer.set_scanned(scanned);
    found
}
