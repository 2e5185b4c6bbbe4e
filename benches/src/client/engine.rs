//! Engine: runs all connections of the client on one thread with one `Poll`.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use rustix::io::Errno;

use super::connection::{Connection, Fault, Shared, Stage, would_block};
use super::content::Content;
use super::schedule::{Nanos, Schedule, nanos};
use super::sources::Sources;
use super::stream::Stream;
use super::tally::Tally;
use super::{Load, Outcome, Progress};

/// Maximum number of connections that wait for their first reply at the same time. It is smaller
/// than the shortest backlog in common use.
const CONNECTING: usize = 64;

/// Maximum bytes per system call.
const SCRATCH: usize = 256 * 1024;

/// Interval at which progress is reported and timeouts are checked.
const TICK: Duration = Duration::from_millis(100);

/// Maximum time that servers have to close their connections after a run.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Engine<'a> {
    pub(super) load: Load,
    on_progress: &'a mut dyn FnMut(Progress),
    poll: Poll,
    epoch: Instant,
    connections: Vec<Connection>,
    shared: Shared,
    /// The schedule of the current run.
    schedule: Option<Schedule>,
    /// Connections that have something to send or to wait for.
    busy: usize,
    failed: usize,
    /// Vacant connections that try again to connect in the next turn.
    to_retry: VecDeque<usize>,
    sources: Sources,
    next_tick: Nanos,
    /// The time of the next action of an open loop: a request or the end of the run.
    wake: Nanos,
    /// The maximum delay behind `wake`.
    late: Nanos,
}

impl<'a> Engine<'a> {
    pub(super) fn new(load: &Load, on_progress: &'a mut dyn FnMut(Progress)) -> io::Result<Self> {
        let depth = load.max_in_flight();
        Ok(Self {
            load: load.clone(),
            on_progress,
            poll: Poll::new()?,
            epoch: Instant::now(),
            connections: (0..load.connections.max(1)).map(|i| Connection::new(i, depth)).collect(),
            shared: Shared {
                content: Content::new(load.size),
                scratch: vec![0; SCRATCH].into(),
                tally: Tally::new()?,
            },
            schedule: None,
            busy: 0,
            failed: 0,
            to_retry: VecDeque::new(),
            sources: Sources::new(),
            next_tick: 0,
            wake: Nanos::MAX,
            late: 0,
        })
    }

    pub(super) fn run(mut self) -> io::Result<Outcome> {
        let mut events = events();
        self.establish(&mut events)?;
        self.follow_schedule(&mut events)?;
        let schedule = self.schedule.take();
        self.close(&mut events)?;
        self.outcome(schedule.as_ref())
    }

    /// Runs the schedule and leaves the connections open.
    pub(super) fn measure(&mut self, events: &mut Events) -> io::Result<Outcome> {
        self.follow_schedule(events)?;
        let schedule = self.schedule.take();
        self.outcome(schedule.as_ref())
    }

    /// Opens all connections, at most [`CONNECTING`] at a time. Each connection sends one request
    /// that is not measured. The reply shows that the server has accepted the connection. With
    /// `churn`, this method does nothing, because the run opens the connections.
    pub(super) fn establish(&mut self, events: &mut Events) -> io::Result<()> {
        if self.load.churn {
            return Ok(());
        }
        let mut next = 0;
        while next < self.connections.len() || self.busy > 0 {
            while next < self.connections.len()
                && self.busy < CONNECTING
                && self.to_retry.is_empty()
            {
                self.change(next, |engine, i| {
                    engine.connections[i].queue_unscheduled();
                    engine.connections[i].last_activity = engine.now();
                    engine.connect(i)
                })?;
                next += 1;
            }
            self.turn(events, TICK)?;
        }
        Ok(())
    }

    fn follow_schedule(&mut self, events: &mut Events) -> io::Result<()> {
        let schedule = Schedule::new(&self.load, self.now());
        self.shared.tally.measured_from = schedule.measured_from;
        self.schedule = Some(schedule);
        for i in 0..self.connections.len() {
            self.change(i, Self::send_due)?;
        }
        loop {
            let wait = self.send_arrivals()?;
            let alive = self.failed < self.connections.len();
            if self.busy == 0 && (wait.is_none() || !alive) {
                return Ok(());
            }
            self.turn(events, wait.unwrap_or(TICK))?;
        }
    }

    /// Sends the open-loop requests that became due. Returns the time until the next request
    /// becomes due.
    fn send_arrivals(&mut self) -> io::Result<Option<Duration>> {
        let now = self.now();
        let Some(schedule) = &mut self.schedule else { return Ok(None) };
        let arrived = schedule.arrivals(now);
        self.late = self.late.max(now.saturating_sub(self.wake));
        self.wake = Nanos::MAX;
        // Visits each connection at most once, because `send_due` takes all requests that are due
        // for it.
        for k in arrived.take(self.connections.len()) {
            self.change((k % self.connections.len() as u64) as usize, Self::send_due)?;
        }
        let Some(next) = self.schedule.as_ref().and_then(|schedule| self.next_due(schedule)) else {
            return Ok(None);
        };
        self.wake = next;
        Ok(Some(Duration::from_nanos(next.saturating_sub(self.now()))))
    }

    /// Returns the due time of the next request that can be sent when it is due, or the end of the
    /// run if that is earlier. Connections at their depth limit are skipped, because their next
    /// request also has to wait for a reply.
    fn next_due(&self, schedule: &Schedule) -> Option<Nanos> {
        let next = schedule.next()?;
        let count = self.connections.len() as u64;
        let can_send = |k: &u64| {
            let connection = &self.connections[(*k % count) as usize];
            connection.stage != Stage::Failed && schedule.free_slots(connection.in_flight()) > 0
        };
        let first = (next..next + count).find(can_send).and_then(|k| schedule.due(k));
        Some(first.unwrap_or(Nanos::MAX).min(schedule.until))
    }

    /// Shuts down all connections and waits until the servers close them. This detects surplus
    /// bytes after the last reply.
    fn close(&mut self, events: &mut Events) -> io::Result<()> {
        for i in 0..self.connections.len() {
            if self.connections[i].stage == Stage::Open {
                self.change(i, |engine, i| {
                    engine.begin_close(i);
                    Ok(())
                })?;
            }
        }
        let until = self.now() + nanos(CLOSE_TIMEOUT);
        while self.busy > 0 && self.now() < until {
            self.turn(events, TICK)?;
        }
        Ok(())
    }

    /// Waits at most `wait` for events and handles them.
    fn turn(&mut self, events: &mut Events, wait: Duration) -> io::Result<()> {
        let wait = if self.to_retry.is_empty() { wait.min(TICK) } else { Duration::from_millis(1) };
        // `poll` would round up to whole milliseconds. Round down, so that the client is not late.
        let wait = Duration::from_millis(wait.as_millis() as u64);
        match self.poll.poll(events, Some(wait)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &*events {
            let to_the_end = event.is_read_closed() || event.is_error();
            self.change(event.token().0, |engine, i| engine.serve(i, to_the_end))?;
        }
        for _ in 0..self.to_retry.len() {
            if let Some(i) = self.to_retry.pop_front() {
                self.change(i, Self::connect)?;
            }
        }
        self.tick()
    }

    fn tick(&mut self) -> io::Result<()> {
        let now = self.now();
        if now < self.next_tick {
            return Ok(());
        }
        self.next_tick = now + nanos(TICK);
        let progress = self.progress(now);
        (self.on_progress)(progress);
        let timeout = nanos(self.load.timeout);
        for i in 0..self.connections.len() {
            let connection = &self.connections[i];
            if connection.is_busy() && now.saturating_sub(connection.last_activity) > timeout {
                self.change(i, |_, _| Err(io::Error::from(io::ErrorKind::TimedOut).into()))?;
            }
        }
        Ok(())
    }

    /// Applies `action` to a connection, updates `busy`, and closes the connection if it fails. All
    /// changes of connections are made here.
    fn change(
        &mut self,
        i: usize,
        action: impl FnOnce(&mut Self, usize) -> Result<(), Fault>,
    ) -> io::Result<()> {
        let was_busy = self.connections[i].is_busy();
        if let Err(fault) = action(self, i) {
            self.fail(i, fault)?;
        }
        self.busy += usize::from(self.connections[i].is_busy());
        self.busy -= usize::from(was_busy);
        Ok(())
    }

    fn serve(&mut self, i: usize, to_the_end: bool) -> Result<(), Fault> {
        let now = self.now();
        let connection = &mut self.connections[i];
        connection.flush(&mut self.shared, now)?;
        let epoch = self.epoch;
        let clock = || nanos(epoch.elapsed());
        if connection.receive(&mut self.shared, to_the_end, clock)? {
            let finished = self.load.churn && connection.in_flight() == 0;
            if connection.stage != Stage::Closing && !finished {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            connection.stream = None;
            connection.stage = Stage::Vacant;
        }
        self.send_due(i)
    }

    /// Sends the requests that the schedule has for a connection, up to its depth limit.
    fn send_due(&mut self, i: usize) -> Result<(), Fault> {
        let now = self.now();
        let connection = &mut self.connections[i];
        let Some(schedule) = &mut self.schedule else { return Ok(()) };
        if self.load.churn && connection.stage == Stage::Open && connection.in_flight() == 0 {
            self.begin_close(i);
            return Ok(());
        }
        if matches!(connection.stage, Stage::Closing | Stage::Failed) {
            return Ok(());
        }
        let before = connection.in_flight();
        for _ in 0..schedule.free_slots(before) {
            let Some(due) = schedule.take(i, connection.given(), now) else { break };
            connection.queue(due);
        }
        if before == 0 {
            connection.last_activity = now;
        }
        match connection.stage {
            Stage::Vacant if before == 0 && connection.in_flight() > 0 => self.connect(i),
            _ => Ok(connection.flush(&mut self.shared, now)?),
        }
    }

    fn connect(&mut self, i: usize) -> Result<(), Fault> {
        let connection = &mut self.connections[i];
        if connection.stage != Stage::Vacant {
            return Ok(());
        }
        match Stream::connect(&self.load.target, &mut self.sources) {
            Ok(mut stream) => {
                stream.register(self.poll.registry(), Token(i))?;
                connection.stream = Some(stream);
                connection.stage = Stage::Open;
            }
            Err(error) if would_block(&error) => self.to_retry.push_back(i),
            Err(error) if self.shared.tally.answered > 0 && is_out_of_ports(&error) => {
                self.to_retry.push_back(i);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Shuts down the sending half. If that fails, a later read returns the error.
    fn begin_close(&mut self, i: usize) {
        let now = self.now();
        let connection = &mut self.connections[i];
        if let Some(stream) = &connection.stream {
            let _ = stream.shutdown_write();
        }
        connection.stage = Stage::Closing;
        connection.last_activity = now;
    }

    /// Closes a failed connection and counts the failure.
    ///
    /// # Errors
    /// Returns an error if the run cannot continue. This is the case if the fault came before any
    /// reply, or if the process has run out of file descriptors.
    fn fail(&mut self, i: usize, fault: Fault) -> io::Result<()> {
        let connection = &mut self.connections[i];
        // After the run, servers may close in any way.
        let over = connection.stage == Stage::Closing && self.schedule.is_none();
        connection.stream = None;
        connection.stage = Stage::Failed;
        self.failed += 1;
        let tally = &mut self.shared.tally;
        match fault {
            Fault::Wrong(description) => tally.wrong(description),
            Fault::Io(_) if over => {}
            Fault::Io(error) if is_exhausted(&error) => {
                let open = self.connections.iter().filter(|c| c.stage == Stage::Open).count();
                return Err(io::Error::other(format!(
                    "no descriptors left after {open} connections ({error}); raise `ulimit -n`"
                )));
            }
            Fault::Io(error) if tally.answered == 0 => return Err(error),
            Fault::Io(error) => {
                tally.error(error.kind());
                tally.missing += connection.in_flight() as u64;
            }
        }
        Ok(())
    }

    fn progress(&self, now: Nanos) -> Progress {
        let requests = self.shared.tally.latency.len();
        let elapsed = Duration::from_nanos(now.saturating_sub(self.shared.tally.measured_from));
        let done = match self.load.length {
            super::Length::Time(time) => elapsed.as_secs_f64() / time.as_secs_f64(),
            super::Length::Requests(all) => requests as f64 / all as f64,
        };
        let open = self.connections.iter().filter(|c| c.stage == Stage::Open).count();
        Progress { elapsed, requests, done: done.clamp(0.0, 1.0), connections: open }
    }

    /// Returns the results since the last call.
    pub(super) fn outcome(&mut self, schedule: Option<&Schedule>) -> io::Result<Outcome> {
        let mut tally = mem::replace(&mut self.shared.tally, Tally::new()?);
        let requests = tally.latency.len();
        let mut end = tally.last_reply;
        if let Some(schedule) = schedule.filter(|all| self.failed == 0 && all.until < Nanos::MAX) {
            end = end.max(schedule.until);
        }
        let mut unsent = 0;
        for (i, connection) in self.connections.iter().enumerate() {
            let Some(schedule) = schedule else { break };
            let left = schedule.left(i, connection.given());
            if connection.stage == Stage::Failed {
                tally.missing += left.end - left.start;
            } else {
                unsent += left.end - left.start;
                tally.unsent(schedule, i, left);
            }
        }
        Ok(Outcome {
            requests,
            bytes: requests * self.shared.content.size as u64,
            elapsed: Duration::from_nanos(end.saturating_sub(tally.measured_from)),
            latency: tally.latency,
            wrong: tally.wrong,
            first_wrong: tally.first_wrong,
            errors: tally.errors,
            missing: tally.missing,
            unsent,
            late: Duration::from_nanos(self.late),
        })
    }

    fn now(&self) -> Nanos {
        nanos(self.epoch.elapsed())
    }
}

/// Returns true for errors that can mean that all ports are in `TIME_WAIT`. The errors no longer
/// occur after some ports have left this state.
fn is_out_of_ports(error: &io::Error) -> bool {
    [io::ErrorKind::AddrInUse, io::ErrorKind::AddrNotAvailable].contains(&error.kind())
}

/// Returns true if the process or the system has no free file descriptors.
fn is_exhausted(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Creates the buffer for the events of one wait.
pub(super) fn events() -> Events {
    Events::with_capacity(1024)
}
