//! The rate limit: a request that comes too early is held, and the wheel knows until when.

use super::{Context, Worker};
use crate::conn_state::Flags;
use crate::handler::Handler;

impl<H: Handler> Worker<H> {
    /// Returns whether the next request comes too early and is held. If not, it must be delivered.
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
