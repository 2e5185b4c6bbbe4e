//! The rate limit. A request that comes too early is held, and a timer is armed for the time at
//! which it may be delivered.

use super::{Context, Worker};
use crate::conn_state::Flags;
use crate::handler::Handler;

impl<H: Handler> Worker<H> {
    /// Returns whether the next request comes too early. If so, the connection is throttled now,
    /// and the request stays held. If not, the request is counted, and the caller must deliver it.
    #[inline(always)]
    pub(super) fn is_early<B>(&mut self, cx: &mut Context<H, B>) -> bool {
        cx.deadlines.rate.is_limited() && self.exceeds_rate(cx)
    }

    #[cold]
    fn exceeds_rate<B>(&mut self, cx: &mut Context<H, B>) -> bool {
        let early = !self.state.conforms(cx.deadlines, cx.now);
        cx.stats.throttled += u64::from(early);
        early
    }

    /// Returns whether a held request still has to wait.
    pub(super) fn is_throttled<B>(&mut self, cx: &Context<H, B>) -> bool {
        self.state.flags.intersects(Flags::THROTTLED)
            && !self.state.try_unthrottle(cx.deadlines, cx.now)
    }
}
