//! One connection at a time: admitted, served, settled, closed. Each has exactly one place here.

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

/// How many idle connections that turn out to have spoken are tried for one newcomer.
const EVICTIONS: u32 = 4;

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Gives a connected socket to a worker; it is served from the next turn on. It is made
    /// non-blocking; its other options are as they were, `TCP_NODELAY` for one. A socket with a
    /// linger time set (`SO_LINGER`) may block when it is closed.
    ///
    /// # Errors
    /// [`PutError`], with the socket inside: the pool is busy or not running, or the socket
    /// cannot be waited for.
    pub fn put(&mut self, socket: impl Into<Socket>) -> Result<ConnId, PutError> {
        let socket = socket.into();
        if let Err(error) = self.check_running().and_then(|()| self.mailbox.take_permit()) {
            return Err(PutError::new(socket, error));
        }
        self.read_clock();
        let outcome = self.admit_blocking(socket);
        // Time that passes until the next turn does not count as a slow turn.
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

    /// Makes a worker of a non-blocking socket whose place is taken, and opens it; one that is
    /// `proxied` opens when its header has come.
    fn admit(&mut self, socket: Socket, proxied: bool) -> Result<ConnId, (Socket, io::Error)> {
        let mut state = ConnState::new(self.pool.next_id(), self.cx.now);
        state.accepted_in_stop = self.is_stopping();
        if proxied {
            state.set_stage(Stage::AwaitingHeader);
        }
        let id = self.register(state, socket)?;
        if let Some(worker) = self.pool.get_mut(id) {
            if !proxied {
                worker.open(&mut self.cx);
            }
            if worker.has_unsent() || worker.state.flags.intersects(Flags::CLOSING) {
                self.pool.enqueue(id);
            }
            self.pool.arm_timer(id, self.cx.deadlines);
        }
        Ok(id)
    }

    /// Makes a worker of a non-blocking socket whose place is taken; on failure the place is
    /// free again.
    pub(super) fn register(
        &mut self,
        state: ConnState,
        socket: Socket,
    ) -> Result<ConnId, (Socket, io::Error)> {
        let id = state.id;
        let session = catch(H::Session::default)
            .ok_or_else(|| io::Error::other("the session's default panicked"));
        let registered = session
            .and_then(|session| self.cx.backend.register(&socket, id.token()).map(|()| session));
        let session = match registered {
            Ok(session) => session,
            Err(error) => {
                self.mailbox.permits.release();
                return Err((socket, error));
            }
        };
        let worker = Worker::new(state, socket, session);
        self.pool.insert(worker, self.cx.deadlines);
        self.cx.stats.put += 1;
        self.cx.stats.peak = self.cx.stats.peak.max(self.pool.live() as u64);
        if self.cx.config.debug {
            log::debug!("{id}: put");
        }
        self.visited.push(id);
        Ok(id)
    }

    /// Admits a connection that a listener accepted, with or without a place, or refuses it: nobody
    /// is there to give it back to.
    #[inline(never)]
    pub(super) fn on_accepted(
        &mut self,
        socket: Socket,
        addr: Option<IpAddr>,
        promised: bool,
        proxied: bool,
    ) {
        let max = self.cx.config.max_per_peer;
        let peer = addr.filter(|_| max > 0).map_or(PeerKey::UNKNOWN, PeerKey::of);
        if !self.peer_counts.admits(peer, max) {
            if promised {
                self.mailbox.permits.release();
            }
            self.cx.stats.refused_per_peer += 1;
            return self.refuse(socket);
        }
        if !promised && !self.finds_place() {
            self.mailbox.permits.count_refused();
            return self.refuse(socket);
        }
        if let Some(id) = self.admit_accepted(socket, proxied) {
            self.peer_counts.add(id.index(), peer);
        }
    }

    /// Shows a connection that has a place to the handler, and admits what it makes of it.
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

    /// Closes a connection that has a place but came too late to be served.
    pub(super) fn abandon_put(&mut self, socket: Socket) {
        self.mailbox.permits.release();
        socket.close();
    }

    /// Closes a connection that could not be admitted, if so.
    pub(super) fn drop_failed(&mut self, outcome: Result<ConnId, (Socket, io::Error)>) {
        if let Err((socket, error)) = outcome {
            if self.cx.config.debug {
                log::debug!("can't put a connection: {error}");
            }
            self.cx.stats.admit_failures += 1;
            socket.close();
        }
    }

    /// Takes the place of an idle connection, if that is what is wanted. Another thread may take it
    /// in between.
    fn finds_place(&mut self) -> bool {
        let evicts = matches!(self.cx.config.overload, Overload::EvictIdle);
        evicts && self.is_running() && self.evict_idle() && self.mailbox.permits.try_acquire()
    }

    /// Closes an idle connection, if there is one that has nothing to say at a last read; or finds
    /// that one has gone meanwhile.
    fn evict_idle(&mut self) -> bool {
        for _ in 0..EVICTIONS {
            let Some(id) = self.pool.longest_idle(self.cx.now.ceil) else { return false };
            let Some(worker) = self.pool.get_mut(id) else { return false };
            let before = worker.state.bytes_in;
            self.read_once_more(id);
            let Some(worker) = self.pool.get_mut(id) else { return true };
            let silent = worker.state.bytes_in == before && !worker.state.readable;
            if silent && worker.is_idle() {
                self.close(id, CloseReason::Evicted);
                return true;
            }
        }
        false
    }

    /// Tells an accepted connection that there is no place for it, and closes it.
    fn refuse(&mut self, mut socket: Socket) {
        let last_word = self.cx.config.overload.last_word();
        // Best effort: a socket just accepted has room, or has been reset.
        let _ = uninterrupted(|| {
            self.cx.stats.writes += 1;
            self.cx.backend.write(&mut socket, last_word)
        });
        self.linger(socket);
    }

    /// Keeps a socket that is not registered until its last reply has arrived, within bounds.
    pub(super) fn linger(&mut self, socket: Socket) {
        self.lingering.add(&mut self.cx.backend, socket, &mut self.cx.stats, self.cx.now);
    }

    /// Serves a worker with one more read: something may have come whose event has not.
    pub(super) fn read_once_more(&mut self, id: ConnId) {
        if let Some(worker) = self.pool.get_mut(id) {
            worker.state.readable |= !worker.state.eof;
        }
        self.serve(id);
    }

    /// Serves a worker, if it is still there.
    pub(super) fn serve(&mut self, id: ConnId) {
        self.visited.push(id);
        if let Some(worker) = self.pool.get_mut(id) {
            let verdict = worker.serve(&mut self.cx);
            self.apply_verdict(id, verdict);
        }
    }

    /// Ends a worker whose time is up, unless a last read shows that its peer did speak: a process
    /// that was suspended or slow, or had more events than one wait returns, is itself late.
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

    /// The one place where a verdict is carried out.
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

    /// Whether a worker has nothing more to do in a stop. What is idle now is read once more
    /// first: a request may have come whose event has not. Who waited to be accepted when the stop
    /// began may make a first request.
    fn is_done_for_stop(&mut self, id: ConnId) -> bool {
        let Some(worker) = self.pool.get_mut(id).filter(|worker| worker.is_idle()) else {
            return false;
        };
        if worker.state.accepted_in_stop && worker.state.bytes_in == 0 && !worker.state.eof {
            return false;
        }
        if worker.state.eof || std::mem::replace(&mut worker.state.final_read, true) {
            return true;
        }
        worker.state.readable = true;
        self.pool.enqueue(id);
        false
    }

    /// The one place where a connection is closed. What is owed was flushed before, or is not
    /// worth it.
    pub(super) fn close(&mut self, id: ConnId, reason: CloseReason) {
        let Some(worker) = self.pool.remove(id) else { return };
        let Worker { state, mut socket, input, output, session } = worker;
        let opened = state.stage() == Stage::Open;
        if !opened {
            // What came of its header is nobody's request, and is not counted as one.
            self.cx.stats.bytes_in -= state.bytes_in;
        }
        let dropped = if opened { input.len() as u64 } else { 0 };
        let closed = Closed {
            id,
            key: state.key(),
            reason,
            age: state.opened.until(self.cx.now.floor),
            bytes_in: state.bytes_in,
            bytes_out: state.bytes_out,
            bytes_dropped: dropped,
            bytes_unsent: output.len() as u64,
        };
        self.peer_counts.remove(id.index());
        self.cx.stats.count_closed(reason);
        self.cx.stats.bytes_dropped += closed.bytes_dropped;
        self.cx.stats.bytes_unsent += closed.bytes_unsent;
        self.cx.buffers.recycle(input);
        self.cx.backend.deregister(&socket);
        if self.lingers(&state, reason) {
            self.linger(socket);
        } else {
            if socket.is_boxed() && reason.is_polite() && output.is_empty() {
                // Best effort: it is the transport's goodbye, and nobody waits for it.
                let _ = self.cx.backend.shutdown_write(&mut socket);
            }
            socket.close();
        }
        self.mailbox.permits.release();
        if self.cx.config.debug {
            log::debug!("{id}: closed after {:?}: {reason}", closed.age);
        }
        if state.stage() == Stage::AwaitingHeader {
            return drop_catching(session);
        }
        self.cx.run_hook(|handler, commands| handler.closed(&closed, session, commands));
    }

    /// Whether a reply may be on its way that unread input would destroy. A connection that is
    /// idle when a stop begins, or is cut off by one, is not waited for.
    fn lingers(&self, state: &ConnState, reason: CloseReason) -> bool {
        let wanted = match reason {
            CloseReason::Stopped => self.is_stopping(),
            _ => reason.is_polite(),
        };
        let recent = state.last_activity.after(lingering::TIME) > self.cx.now.floor;
        wanted && recent && state.bytes_out > 0 && !state.eof
    }
}
