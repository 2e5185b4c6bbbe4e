//! Records for which directions each socket is armed. This module is used on systems where a
//! reported event disarms its direction.
//!
//! On some systems mio uses poll(2), and has to emulate edge-triggered readiness. After mio has
//! reported an event, it does not report the same direction again until the socket is registered
//! again. Registering again replaces the interest in both directions. This module therefore
//! remembers which directions are armed. A direction is armed again only after a call has returned
//! `WouldBlock`. If a direction stayed armed while it is ready, every wait would report it.

use std::collections::HashMap;
use std::os::fd::RawFd;

/// The directions that a socket is armed for.
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
    /// Records that a socket was registered for both directions.
    pub(super) fn insert(&mut self, socket: RawFd, token: u64) {
        self.armed.insert(socket, Armed { token, reading: true, writing: true });
        self.sockets.insert(token, socket);
    }

    pub(super) fn remove(&mut self, socket: RawFd) {
        if let Some(armed) = self.armed.remove(&socket) {
            self.sockets.remove(&armed.token);
        }
    }

    /// Records that an event was reported. The event has disarmed each direction that it reports.
    pub(super) fn reported(&mut self, token: u64, readable: bool, writable: bool) {
        let socket = self.sockets.get(&token);
        if let Some(armed) = socket.and_then(|socket| self.armed.get_mut(socket)) {
            armed.reading &= !readable;
            armed.writing &= !writable;
        }
    }

    /// Records that a call in this direction has returned `WouldBlock`. Returns the directions for
    /// which the socket has to be armed. Returns `None` if the socket is already armed for this
    /// direction, or is unknown.
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
    fn a_reported_direction_is_armed_again_when_it_blocks() {
        let mut oneshot = Oneshot::default();
        oneshot.insert(3, 7);
        assert_eq!(oneshot.blocked(3, Direction::Reading), None, "it is still armed");
        oneshot.reported(7, true, true);
        let armed = Armed { token: 7, reading: true, writing: false };
        assert_eq!(oneshot.blocked(3, Direction::Reading), Some(armed));
        assert_eq!(oneshot.blocked(3, Direction::Reading), None);
        let armed = Armed { writing: true, ..armed };
        assert_eq!(oneshot.blocked(3, Direction::Writing), Some(armed));
    }

    #[test]
    fn a_blocked_write_does_not_disarm_reading() {
        let mut oneshot = Oneshot::default();
        oneshot.insert(3, 7);
        oneshot.reported(7, false, true);
        let armed = Armed { token: 7, reading: true, writing: true };
        assert_eq!(oneshot.blocked(3, Direction::Writing), Some(armed));
    }

    #[test]
    fn a_removed_socket_is_not_armed() {
        let mut oneshot = Oneshot::default();
        oneshot.insert(3, 7);
        oneshot.remove(3);
        oneshot.reported(7, true, true);
        assert_eq!(oneshot.blocked(3, Direction::Reading), None);
    }
}
