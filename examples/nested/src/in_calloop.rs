//! Runs the manager in a calloop event loop. One event source is the manager's descriptor. Another
//! event source is a timer for the next deadline.

use std::error::Error;
use std::time::{Duration, Instant};

use calloop::generic::Generic;
use calloop::signals::{Signal, Signals};
use calloop::timer::{TimeoutAction, Timer};
use calloop::{EventLoop, Interest, LoopHandle, LoopSignal, Mode, PostAction, RegistrationToken};
use pool_manager::{Handler, Manager, StopReport};

use crate::{SECOND_SIGNAL, descriptor};

type Outcome = Result<StopReport, Box<dyn Error>>;

struct State<H: Handler> {
    manager: Manager<H>,
    /// The timer and its due time.
    armed: Option<(RegistrationToken, Instant)>,
    handle: LoopHandle<'static, Self>,
    exit: LoopSignal,
    stopping: bool,
    outcome: Option<Outcome>,
}

/// Turns the manager until a signal has stopped it. Calls `ready` before the first turn.
pub(crate) fn run<H: Handler + 'static>(manager: Manager<H>, ready: impl FnOnce()) -> Outcome {
    let mut events: EventLoop<'static, State<H>> = EventLoop::try_new()?;
    let handle = events.handle();
    let source = Generic::new(descriptor(&manager)?, Interest::READ, Mode::Level);
    handle.insert_source(source, |_, _, state| {
        state.turn();
        Ok(PostAction::Continue)
    })?;
    let signals = Signals::new(&[Signal::SIGTERM, Signal::SIGINT])?;
    handle.insert_source(signals, |_, (), state| state.stop())?;
    let exit = events.get_signal();
    let mut state = State { manager, armed: None, handle, exit, stopping: false, outcome: None };
    state.arm();
    ready();
    events.run(None, &mut state, |_| {})?;
    state.outcome.unwrap_or_else(|| Err(SECOND_SIGNAL.into()))
}

impl<H: Handler + 'static> State<H> {
    fn turn(&mut self) {
        match self.manager.turn(Some(Duration::ZERO)) {
            Ok(turn) => match turn.stopped {
                Some(report) => self.end(Ok(report)),
                None => self.arm(),
            },
            Err(error) => self.end(Err(error.into())),
        }
    }

    /// Arms the timer for the next deadline, unless it is armed for an earlier time. A timer that
    /// expires early costs one turn with nothing to do. This is cheaper than moving the timer after
    /// every turn.
    fn arm(&mut self) {
        let Some(due) = self.manager.next_timeout() else { return };
        let at = Instant::now() + due;
        if self.armed.is_some_and(|(_, armed)| armed <= at) {
            return;
        }
        if let Some((timer, _)) = self.armed.take() {
            self.handle.remove(timer);
        }
        let timer = Timer::from_deadline(at);
        let inserted = self.handle.insert_source(timer, |_, (), state| {
            state.armed = None;
            state.turn();
            TimeoutAction::Drop
        });
        match inserted {
            Ok(timer) => self.armed = Some((timer, at)),
            Err(error) => self.end(Err(error.error.into())),
        }
    }

    /// Begins a graceful stop; a second call ends the loop. `Manager::stop` would block the other
    /// event sources of this thread until all connections have been served.
    fn stop(&mut self) {
        let again = std::mem::replace(&mut self.stopping, true);
        match self.manager.handle().stop() {
            Ok(()) if !again => {}
            Ok(()) => self.exit.stop(),
            Err(error) => self.end(Err(error.into())),
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
        self.exit.stop();
    }
}
