//! Connection ids, and their packing into the 64-bit token of a readiness event.
//!
//! A slab reuses the index that was freed last. If the token contained only the index, a late event
//! of a closed connection would reach the next connection at the same index. The upper half of the
//! token therefore holds a generation, which distinguishes the two connections.

use std::fmt;

/// The identity of a connection: the index of its worker, and the generation of that index.
///
/// It is shown as the index and the generation: `7.3` is the third connection at index 7. A manager
/// never reuses an id. The id of a closed connection therefore never refers to another connection.
///
/// ```
/// use pool_manager::{Config, Manager};
/// use std::os::unix::net::UnixStream;
///
/// let mut manager = Manager::new(Config::new(), |_conn, _body| Ok(()))?;
/// manager.start()?;
/// let (_peer, ours) = UnixStream::pair()?;
/// let id = manager.put(ours)?;
/// assert_eq!(id.to_string(), "0.1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(u64);

impl ConnId {
    /// The last generation of an index. After this generation, the index is not used again. Higher
    /// generations mark tokens of other kinds.
    pub(crate) const LAST_GENERATION: u32 = u32::MAX - 3;

    pub(crate) fn new(index: u32, generation: u32) -> Self {
        debug_assert!((1..=Self::LAST_GENERATION).contains(&generation));
        Self(pack(generation, index))
    }

    pub(crate) fn index(self) -> usize {
        self.0 as u32 as usize
    }

    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(crate) fn token(self) -> u64 {
        self.0
    }

    /// Returns the id as one number, for maps and logs. The number is unique for the life of the
    /// manager.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index(), self.generation())
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnId({self})")
    }
}

const WAKER: u32 = u32::MAX;
const LISTENER: u32 = u32::MAX - 1;
const LINGERER: u32 = u32::MAX - 2;

/// The object that a token refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Worker(ConnId),
    Listener(usize),
    Lingerer(usize),
    Waker,
}

impl Token {
    pub(crate) fn pack(self) -> u64 {
        match self {
            Self::Worker(id) => id.token(),
            Self::Listener(index) => pack(LISTENER, index as u32),
            Self::Lingerer(index) => pack(LINGERER, index as u32),
            Self::Waker => pack(WAKER, 0),
        }
    }

    pub(crate) fn unpack(token: u64) -> Self {
        let id = ConnId(token);
        match id.generation() {
            ..LINGERER => Self::Worker(id),
            LINGERER => Self::Lingerer(id.index()),
            LISTENER => Self::Listener(id.index()),
            WAKER => Self::Waker,
        }
    }
}

fn pack(generation: u32, index: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_token_unpacks_to_the_same_token() {
        let last = ConnId::LAST_GENERATION;
        for index in [0, 1, 7, u32::MAX] {
            for generation in [1, 2, last] {
                let token = Token::Worker(ConnId::new(index, generation));
                assert_eq!(Token::unpack(token.pack()), token);
            }
            for token in [Token::Listener(index as usize), Token::Lingerer(index as usize)] {
                assert_eq!(Token::unpack(token.pack()), token);
            }
        }
        assert_eq!(Token::unpack(Token::Waker.pack()), Token::Waker);
    }

    #[test]
    fn an_id_is_shown_as_index_and_generation() {
        let id = ConnId::new(7, 3);
        assert_eq!(id.to_string(), "7.3");
        assert_eq!(format!("{id:?}"), "ConnId(7.3)");
        assert_eq!(id.as_u64(), 3 << 32 | 7);
    }
}
