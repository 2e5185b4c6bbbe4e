//! Admits, serves, expires and closes connections. Only this module adds workers to the pool and
//! removes them.

use std::io;
use std::net::IpAddr;

use super::Manager;
use crate::config::Overload;
use crate::conn_state::{CloseReason, ConnState, Flags, Stage};
use crate::error::{Error, PutError};
use crate::handler::{Closed, Handler};
use crate::id::ConnId;
use crate::lingering;
use crate::panics::{catch, drop_catching};
use crate::peer_counts::PeerKey;
use crate::socket::{Socket, uninterrupted};
use crate::sys::Backend;
use crate::worker::{Verdict, Worker};

/// The maximum number of idle connections that are read once more when a connection has to be
/// evicted. If data has arrived on all of these connections, the new connection is refused.
const EVICTIONS: u32 = 4;

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Gives a connected socket to a worker. The connection is served from the next turn on. The
    /// socket is made non-blocking. Its other options, such as `TCP_NODELAY`, are not changed. A
    /// socket with a linger time (`SO_LINGER`) may block when it is closed.
    ///
    /// # Errors
    /// [`PutError`], which contains the socket and one of these errors: [`Error::NotRunning`];
    /// [`Error::Busy`]; [`Error::Unsuitable`] if the socket cannot be registered.
    pub fn put(&mut self, socket: impl Into<Socket>) -> Result<ConnId, PutError> {
        let socket = socket.into();
        if let Err(error) = self.check_running().and_then(|()| self.mailbox.take_permit()) {
            return Err(PutError::new(socket, error));
        }
        self.read_clock();
        let outcome = self.admit_blocking(socket);
        // Read the clock again, so that the time until the next turn does not count as a slow turn.
        self.read_clock();
        outcome.map_err(|(socket, error)| PutError::new(socket, Error::Unsuitable(error)))
    }

    /// Admits a socket that may still be in blocking mode.
    pub(super) fn admit_blocking(&mut self, socket: Socket) -> Result<ConnId, (Socket, io::Error)> {
        if let Err(error) = socket.set_nonblocking() {
            self.mailbox.permits.release();
            return Err((socket, error));
        }
        self.admit(socket, false)
    }

    /// Registers a non-blocking socket that has a permit, and opens the connection. A `proxied`
    /// connection is opened later, when its header has arrived.
    fn admit(&mut self, socket: Socket, proxied: bool) -> Result<ConnId, (Socket, io::Error)> {
        let mut state = ConnState::new(self.pool.next_id(), self.cx.now);
        if proxied {
            state.set_stage(Stage::AwaitingHeader);
        }
        let id = self.register(state, socket)?;
        let stopping = self.is_stopping();
        if let Some(worker) = self.pool.get_mut(id) {
            worker.accepted_in_stop = stopping;
            if !proxied {
                worker.open(&mut self.cx);
            }
            if worker.has_unsent()
                || worker.state.flags.intersects(Flags::CLOSING | Flags::FINISHED)
            {
                self.pool.enqueue(id);
            }
            self.pool.arm_timer(id, self.cx.deadlines);
        }
        Ok(id)
    }

    /// Creates a worker for a non-blocking socket that has a permit. On failure the permit is
    /// released.
    pub(super) fn register(
        &mut self,
        state: ConnState,
        socket: Socket,
    ) -> Result<ConnId, (Socket, io::Error)> {
        let id = state.id;
        if let Err(error) = self.cx.backend.register(&socket, id.token()) {
            self.mailbox.permits.release();
            return Err((socket, error));
        }
        let worker = Worker::new(state, socket);
        self.pool.insert(worker, self.cx.deadlines);
        self.cx.stats.put += 1;
        self.cx.stats.peak = self.cx.stats.peak.max(self.pool.live() as u64);
        if self.cx.config.debug {
            log::debug!("{id}: put");
        }
        self.visited.push(id);
        Ok(id)
    }

    /// Admits or refuses an accepted connection. `has_permit` says whether a permit was taken for
    /// the connection.
    #[inline(never)]
    pub(super) fn on_accepted(
        &mut self,
        socket: Socket,
        addr: Option<IpAddr>,
        has_permit: bool,
        proxied: bool,
    ) {
        let max = self.cx.config.max_per_peer;
        let peer = addr.filter(|_| max.is_some()).map_or(PeerKey::UNKNOWN, PeerKey::of);
        if !self.peer_counts.admits(peer, max.unwrap_or(usize::MAX)) {
            if has_permit {
                self.mailbox.permits.release();
            }
            self.cx.stats.refused_per_peer += 1;
            return self.refuse(socket);
        }
        if !has_permit && !self.acquire_by_eviction() {
            self.mailbox.permits.count_refused();
            return self.refuse(socket);
        }
        if let Some(id) = self.admit_accepted(socket, proxied) {
            self.peer_counts.add(id.index(), peer);
        }
    }

    /// Calls [`Handler::wrap`] with an accepted connection that has a permit. Then admits the
    /// socket that this hook returns.
    fn admit_accepted(&mut self, socket: Socket, proxied: bool) -> Option<ConnId> {
        let handler = &mut self.cx.handler;
        match catch(|| handler.wrap(socket)) {
            Some(Ok(socket)) => match self.admit(socket, proxied) {
                Ok(id) => return Some(id),
                failed => {
                    self.drop_failed(failed);
                    return None;
                }
            },
            Some(Err(error)) => {
                if self.cx.config.debug {
                    log::debug!("a connection was not wrapped: {}", error.kind());
                }
                drop_catching(error);
            }
            None => self.cx.stats.panics += 1,
        }
        self.cx.stats.admit_failures += 1;
        self.mailbox.permits.release();
        None
    }

    /// Releases the permit of a queued socket and closes the socket, because the manager stops.
    pub(super) fn abandon_put(&mut self, socket: Socket) {
        self.mailbox.permits.release();
        socket.close();
    }

    /// Closes and counts a socket that could not be admitted.
    pub(super) fn drop_failed(&mut self, outcome: Result<ConnId, (Socket, io::Error)>) {
        if let Err((socket, error)) = outcome {
            if self.cx.config.debug {
                log::debug!("can't put a connection: {error}");
            }
            self.cx.stats.admit_failures += 1;
            socket.close();
        }
    }

    /// Evicts an idle connection if [`Overload::EvictIdle`] is configured. Then acquires the permit
    /// of the evicted connection. Returns false if no connection was evicted, or if another thread
    /// acquired the permit first.
    fn acquire_by_eviction(&mut self) -> bool {
        let evicts = matches!(self.cx.config.overload, Overload::EvictIdle);
        evicts && self.is_running() && self.evict_idle() && self.mailbox.permits.try_acquire()
    }

    /// Closes the longest-idle connection to free its worker. Before that, the connection is read
    /// once more. If data has arrived, the connection is served and stays open. The next
    /// longest-idle connection is then tried. At most [`EVICTIONS`] connections are tried. Returns
    /// whether a connection was closed.
    fn evict_idle(&mut self) -> bool {
        for _ in 0..EVICTIONS {
            let Some(id) = self.pool.longest_idle(self.cx.now.ceil) else { return false };
            let Some(worker) = self.pool.get_mut(id) else { return false };
            let before = worker.state.bytes_in;
            self.read_once_more(id);
            let Some(worker) = self.pool.get_mut(id) else { return true };
            let silent = worker.state.bytes_in == before && !worker.readable;
            if silent && worker.is_idle() {
                self.close(id, CloseReason::Evicted);
                return true;
            }
        }
        false
    }

    /// Sends the configured refusal to an accepted connection, and closes it.
    fn refuse(&mut self, mut socket: Socket) {
        let refusal = self.cx.config.overload.refusal();
        // Ignore an error. A write to a new socket normally fails only if the connection was reset.
        let _ = uninterrupted(|| {
            self.cx.stats.writes += 1;
            self.cx.backend.write(&mut socket, refusal)
        });
        self.linger(socket);
    }

    /// Lets an unregistered socket linger, within limits, so that the last reply can reach the
    /// peer.
    pub(super) fn linger(&mut self, socket: Socket) {
        self.lingering.add(&mut self.cx.backend, socket, &mut self.cx.stats, self.cx.now);
    }

    /// Serves a worker and reads its socket once more. This finds data whose event was not reported
    /// yet.
    pub(super) fn read_once_more(&mut self, id: ConnId) {
        if let Some(worker) = self.pool.get_mut(id) {
            worker.readable |= !worker.eof;
        }
        self.serve(id);
    }

    /// Serves a worker, if it exists.
    pub(super) fn serve(&mut self, id: ConnId) {
        self.visited.push(id);
        if let Some(worker) = self.pool.get_mut(id) {
            let verdict = worker.serve(&mut self.cx);
            self.apply_verdict(id, verdict);
        }
    }

    /// Reads a connection once more. The read finds data that arrived in time, but whose event was
    /// not reported yet. Such data exists if the process was suspended or slow, or if there were
    /// more events than one wait returns. Then expires the connection, unless the read has moved
    /// its deadline into the future.
    #[inline(never)]
    pub(super) fn expire(&mut self, id: ConnId) {
        self.read_once_more(id);
        let (now, deadlines) = (self.cx.now.floor, self.cx.deadlines);
        let late = |worker: &&mut Worker<_>| worker.state.deadline(deadlines) <= now;
        if let Some(worker) = self.pool.get_mut(id).filter(late) {
            self.cx.stats.expired += 1;
            let verdict = worker.expire(&mut self.cx);
            self.apply_verdict(id, verdict);
        }
    }

    /// Applies the verdict of a visit. No other function applies verdicts.
    #[inline(never)]
    pub(super) fn apply_verdict(&mut self, id: ConnId, verdict: Verdict) {
        match verdict {
            Verdict::Close(reason) => return self.close(id, reason),
            Verdict::Again => self.pool.enqueue(id),
            Verdict::Wait if self.is_stopping() => {
                if self.is_done_for_stop(id) {
                    return self.close(id, CloseReason::Stopped);
                }
            }
            Verdict::Wait => {}
        }
        self.pool.arm_timer(id, self.cx.deadlines);
    }

    /// Returns whether the stop in progress may close a connection now. An idle connection is first
    /// read once more, to find a request whose event was not reported yet. A connection that was
    /// accepted during the stop may make one request. For such a connection, this function returns
    /// false until bytes or an end of file arrive.
    fn is_done_for_stop(&mut self, id: ConnId) -> bool {
        let Some(worker) = self.pool.get_mut(id).filter(|worker| worker.is_idle()) else {
            return false;
        };
        if worker.accepted_in_stop && worker.state.bytes_in == 0 && !worker.eof {
            return false;
        }
        if worker.eof || std::mem::replace(&mut worker.final_read, true) {
            return true;
        }
        worker.readable = true;
        self.pool.enqueue(id);
        false
    }

    /// Closes a connection. No other function closes connections. This function sends no output. A
    /// caller that wants to send the output must do so before this call.
    pub(super) fn close(&mut self, id: ConnId, reason: CloseReason) {
        let Some(worker) = self.pool.remove(id) else { return };
        let Worker { mut state, mut socket, input, output, session, eof, .. } = worker;
        let opened = state.stage() == Stage::Open;
        if !opened {
            // Bytes of an incomplete header are not counted as received.
            self.cx.stats.bytes_in -= state.bytes_in;
        }
        let dropped = if opened { input.len() as u64 } else { 0 };
        let closed = Closed {
            id,
            key: state.key(),
            reason,
            error: state.take_error(reason),
            age: state.opened.until(self.cx.now.floor),
            bytes_in: state.bytes_in,
            bytes_out: state.bytes_out,
            bytes_dropped: dropped,
            bytes_unsent: output.len() as u64 + state.discarded(),
        };
        debug_assert_eq!(closed.error.is_some(), reason.is_failure(), "{id}: {reason}");
        self.peer_counts.remove(id.index());
        self.cx.stats.count_closed(reason);
        self.cx.stats.bytes_dropped += closed.bytes_dropped;
        self.cx.stats.bytes_unsent += closed.bytes_unsent;
        self.cx.buffers.recycle(input);
        self.cx.backend.deregister(&socket);
        if !eof && self.lingers(&state, reason) {
            self.linger(socket);
        } else {
            let closed = state.flags.intersects(Flags::WRITE_CLOSED);
            if socket.is_boxed() && reason.is_polite() && output.is_empty() && !closed {
                // Send the closing message of the transport, such as a TLS `close_notify`. Ignore
                // an error.
                let _ = self.cx.backend.shutdown_write(&mut socket);
            }
            socket.close();
        }
        self.mailbox.permits.release();
        if self.cx.config.debug {
            let kind = closed.error.as_ref().map(|error| format!(" ({})", error.kind()));
            let kind = kind.unwrap_or_default();
            log::debug!("{id}: closed after {:?}: {reason}{kind}", closed.age);
        }
        if state.stage() != Stage::AwaitingHeader {
            self.cx.run_hook(|handler, commands| handler.closed(&closed, session, commands));
        }
        if let Some(error) = closed.error {
            drop_catching(error);
        }
    }

    /// Returns whether the socket has to linger, because a reply may still be on its way to the
    /// peer, which has not closed its side. Without lingering, unread input could cause a reset
    /// that destroys the reply. A connection that is idle when a stop begins does not linger. A
    /// connection that is aborted by the stop does not linger either.
    fn lingers(&self, state: &ConnState, reason: CloseReason) -> bool {
        let wanted = match reason {
            CloseReason::Stopped => self.is_stopping(),
            _ => reason.is_polite(),
        };
        let recent = state.last_activity.after(lingering::TIME) > self.cx.now.floor;
        wanted && recent && state.bytes_out > 0
    }
}
