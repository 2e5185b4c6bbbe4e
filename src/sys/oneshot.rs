//! Oneshot: which sockets are armed for what, where the system disarms what it reports.
//!
//! mio can stand on poll(2), which it makes edge-triggered by forgetting an interest once it has
//! been reported, until the socket is registered anew. Registering anew replaces what is armed;
//! so this room remembers what was, and arms what has blocked and nothing else: what is ready all
//! along would be reported for ever. It knows no selector.

use std::collections::HashMap;
use std::os::fd::RawFd;

/// What a socket is armed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Armed {
    pub(super) token: u64,
    pub(super) reading: bool,
    pub(super) writing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Reading,
    Writing,
}

#[derive(Debug, Default)]
pub(super) struct Oneshot {
    armed: HashMap<RawFd, Armed>,
    sockets: HashMap<u64, RawFd>,
}

impl Oneshot {
    /// A socket was registered for everything.
    pub(super) fn insert(&mut self, socket: RawFd, token: u64) {
        self.armed.insert(socket, Armed { token, reading: true, writing: true });
        self.sockets.insert(token, socket);
    }

    pub(super) fn remove(&mut self, socket: RawFd) {
        if let Some(armed) = self.armed.remove(&socket) {
            self.sockets.remove(&armed.token);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// An event was reported, which disarmed what it says.
    pub(super) fn reported(&mut self, token: u64, readable: bool, writable: bool) {
        let socket = self.sockets.get(&token);
        if let Some(armed) = socket.and_then(|socket| self.armed.get_mut(socket)) {
            armed.reading &= !readable;
            armed.writing &= !writable;
        }
    }

    /// A socket has blocked: what to arm it for now, if that is more than it was.
    pub(super) fn blocked(&mut self, socket: RawFd, direction: Direction) -> Option<Armed> {
        let armed = self.armed.get_mut(&socket)?;
        let before = *armed;
        match direction {
            Direction::Reading => armed.reading = true,
            Direction::Writing => armed.writing = true,
        }
        (*armed != before).then_some(*armed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_reported_is_armed_again_only_once_it_blocks() {
        let mut oneshot = Oneshot::default();
        oneshot.insert(3, 7);
        assert_eq!(oneshot.blocked(3, Direction::Reading), None, "it is armed still");
        oneshot.reported(7, true, true);
        let armed = Armed { token: 7, reading: true, writing: false };
        assert_eq!(oneshot.blocked(3, Direction::Reading), Some(armed));
        assert_eq!(oneshot.blocked(3, Direction::Reading), None);
        let armed = Armed { writing: true, ..armed };
        assert_eq!(oneshot.blocked(3, Direction::Writing), Some(armed));
    }

    #[test]
    fn a_greeting_that_blocks_does_not_disarm_reading() {
        let mut oneshot = Oneshot::default();
        oneshot.insert(3, 7);
        oneshot.reported(7, false, true);
        let armed = Armed { token: 7, reading: true, writing: true };
        assert_eq!(oneshot.blocked(3, Direction::Writing), Some(armed));
    }

    #[test]
    fn who_is_gone_is_not_armed() {
        let mut oneshot = Oneshot::default();
        oneshot.insert(3, 7);
        oneshot.remove(3);
        oneshot.reported(7, true, true);
        assert_eq!(oneshot.blocked(3, Direction::Reading), None);
    }
}
