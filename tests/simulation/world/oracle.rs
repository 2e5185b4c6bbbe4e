//! Oracle: a second, naive implementation of the framings, which checks each body.

use std::cell::Cell;
use std::collections::BTreeSet;

use pool_manager::{Cause, Frame, Framing, Prefix};

thread_local! {
    /// Number of panics of the framing function in this run.
    pub(crate) static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// The custom framing of these runs. The first byte modulo 4 is the number of bytes that follow.
/// The byte 5 is invalid, and the byte 6 makes the function panic.
pub(crate) fn counted() -> Framing {
    Framing::custom(|held| match held[0] {
        5 => Frame::Invalid,
        6 => {
            PANICS.set(PANICS.get() + 1);
            std::panic::panic_any(super::PLANNED)
        }
        n if held.len() > usize::from(n % 4) => Frame::Complete(usize::from(n % 4) + 1),
        _ => Frame::Partial,
    })
}

/// Returns the length of the frame at the front of `held` and the range of its body.
fn frame(framing: &Framing, held: &[u8]) -> Option<(usize, std::ops::Range<usize>)> {
    match framing {
        Framing::Delimited(byte) => {
            let at = held.iter().position(|held| held == byte)?;
            Some((at + 1, 0..at))
        }
        Framing::LengthPrefixed { prefix: Prefix::U16Be, limit } => {
            let body = usize::from(*held.first()?) * 256 + usize::from(*held.get(1)?);
            let allowed = body <= *limit;
            (allowed && held.len() >= 2 + body).then_some((2 + body, 2..2 + body))
        }
        Framing::Custom(_) => match *held.first()? {
            5 | 6 => None,
            n => {
                let length = usize::from(n % 4) + 1;
                (held.len() >= length).then_some((length, 0..length))
            }
        },
        _ => None,
    }
}

/// Returns whether the length prefix at the front of `held` announces a frame that is longer than
/// `longest` or longer than the framing allows.
pub(crate) fn announces(framing: &Framing, held: &[u8], longest: usize) -> bool {
    let Framing::LengthPrefixed { prefix: Prefix::U16Be, limit } = framing else { return false };
    let [high, low, ..] = held else { return false };
    let body = usize::from(*high) * 256 + usize::from(*low);
    body + 2 > longest || body > *limit
}

/// Returns whether `held` starts with a complete frame. The loop must not sleep in that case.
pub(crate) fn complete(framing: &Framing, held: &[u8]) -> bool {
    frame(framing, held).is_some()
}

/// Returns whether the framing has no message boundaries.
pub(crate) fn is_stream(framing: &Framing) -> bool {
    matches!(framing, Framing::Filled | Framing::Drained)
}

/// Checks the bytes of a call of `incomplete`.
pub(crate) fn check_incomplete(
    framing: &Framing,
    cause: Cause,
    held: &[u8],
    body: &[u8],
) -> Result<(), String> {
    if held != body {
        return Err(format!("{} bytes differ from the {} held bytes", body.len(), held.len()));
    }
    // When `memory_limit` is reached, complete requests may have had to wait.
    if cause != Cause::MemoryLimit && complete(framing, held) {
        return Err("a complete frame is held".into());
    }
    let expired = cause == Cause::Expired;
    match cause {
        _ if is_stream(framing) && (!expired || !held.is_empty()) => {
            Err("the held bytes of a stream are a request".into())
        }
        _ if held.is_empty() && !expired => Err("nothing is held".into()),
        Cause::Eof | Cause::Expired | Cause::Overlong | Cause::MemoryLimit => Ok(()),
        _ => Err("no cause of an incomplete request".into()),
    }
}

/// Returns the number of `held` bytes that this request used. The error says why the body is
/// wrong.
pub(crate) fn taken(
    framing: &Framing,
    cause: Cause,
    held: &[u8],
    body: &[u8],
    sizes: &BTreeSet<usize>,
) -> Result<usize, String> {
    let found = frame(framing, held);
    let stream = is_stream(framing);
    let expected = match cause {
        Cause::Framed => {
            let (taken, range) = found.ok_or("there is no complete frame")?;
            (&held[range] == body).then_some(taken)
        }
        Cause::Drained if !matches!(framing, Framing::Drained) => return Err("not drained".into()),
        Cause::Full if !stream => return Err("the framing is not a stream".into()),
        Cause::Full if !sizes.contains(&body.len()) => {
            return Err(format!("{} bytes fill no buffer, of {sizes:?}", body.len()));
        }
        Cause::Eof if held.is_empty() => return Err("nothing is held".into()),
        Cause::Full | Cause::Drained | Cause::Eof | Cause::Expired | Cause::MemoryLimit
            if stream =>
        {
            (held == body).then_some(held.len())
        }
        _ => return Err("the request is incomplete".into()),
    };
    expected.ok_or_else(|| format!("{} bytes differ from the bytes of the peer", body.len()))
}
