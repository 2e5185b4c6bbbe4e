//! Pacing: a request that comes too early for the rate limit is held, and the wheel says until when.

use super::{Kit, Worker};
use crate::vitals::State;

impl<S> Worker<S> {
    /// Whether the request that is there comes too early, and is held. If not, it is delivered.
    #[inline(always)]
    pub(super) fn is_early<H, B>(&mut self, kit: &mut Kit<H, B>) -> bool {
        kit.deadlines.pace.is_limited() && self.falls_behind(kit)
    }

    #[cold]
    fn falls_behind<H, B>(&mut self, kit: &mut Kit<H, B>) -> bool {
        let early = !self.vitals.keeps_pace(kit.deadlines, kit.now);
        kit.stats.throttled += u64::from(early);
        early
    }

    /// Whether the time of the request that is held has not come yet.
    pub(super) fn is_held_back<H, B>(&mut self, kit: &Kit<H, B>) -> bool {
        self.vitals.state.any(State::THROTTLED) && !self.vitals.catch_up(kit.deadlines, kit.now)
    }
}
