//! One connection at a time: admitted, served, settled, closed. Each has exactly one place here.

use std::io;
use std::net::IpAddr;

use super::{Manager, Phase};
use crate::backend::Backend;
use crate::config::Overload;
use crate::error::{PutError, PutErrorKind};
use crate::guard::{contain, dispose};
use crate::handler::{Closed, Handler};
use crate::id::ConnId;
use crate::lingering;
use crate::mailbox::Refusal;
use crate::peers::Peer;
use crate::socket::{Socket, uninterrupted};
use crate::vitals::{CloseReason, State, Vitals};
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
        let mailbox = self.mailbox.clone();
        if !matches!(self.phase, Phase::Running) {
            return Err(PutError::refused(socket, Refusal::NotRunning, mailbox));
        }
        if !mailbox.places.take_or_count() {
            return Err(PutError::refused(socket, Refusal::Busy, mailbox));
        }
        self.read_clock();
        let outcome = self.adopt(socket);
        // What follows is not what took us long.
        self.read_clock();
        outcome.map_err(|(socket, error)| {
            PutError::new(socket, PutErrorKind::Unsuitable(error), mailbox)
        })
    }

    /// Admits a socket that may still be in blocking mode.
    pub(super) fn adopt(&mut self, socket: Socket) -> Result<ConnId, (Socket, io::Error)> {
        if let Err(error) = socket.set_nonblocking() {
            self.mailbox.places.release();
            return Err((socket, error));
        }
        self.admit(socket, false)
    }

    /// Makes a worker of a non-blocking socket whose place is taken, and opens it; one that is
    /// `proxied` opens when its header has come.
    fn admit(&mut self, socket: Socket, proxied: bool) -> Result<ConnId, (Socket, io::Error)> {
        let mut vitals = Vitals::new(self.pool.next_id(), self.kit.now);
        vitals.newcomer = matches!(self.phase, Phase::Stopping(_));
        vitals.state.set(State::UNKNOWN, proxied);
        let id = self.employ(vitals, socket)?;
        if let Some(worker) = self.pool.get_mut(id) {
            if !proxied {
                worker.open(&mut self.kit);
            }
            if worker.owes() || worker.vitals.state.any(State::ENDING) {
                self.pool.list(id);
            }
            self.pool.file(id, self.kit.deadlines);
        }
        Ok(id)
    }

    /// Makes a worker of a non-blocking socket whose place is taken; on failure the place is
    /// free again.
    pub(super) fn employ(
        &mut self,
        vitals: Vitals,
        socket: Socket,
    ) -> Result<ConnId, (Socket, io::Error)> {
        let id = vitals.id;
        let session = contain(H::Session::default)
            .ok_or_else(|| io::Error::other("the session's default panicked"));
        let registered = session
            .and_then(|session| self.kit.backend.register(&socket, id.token()).map(|()| session));
        let session = match registered {
            Ok(session) => session,
            Err(error) => {
                self.mailbox.places.release();
                return Err((socket, error));
            }
        };
        let worker = Worker::new(vitals, socket, session);
        self.pool.insert(worker, self.kit.deadlines);
        self.kit.stats.put += 1;
        self.kit.stats.peak = self.kit.stats.peak.max(self.pool.live() as u64);
        if self.kit.config.debug {
            log::debug!("{id}: put");
        }
        self.visited.push(id);
        Ok(id)
    }

    /// Admits a connection that a listener accepted, with or without a place, or refuses it: nobody
    /// is there to give it back to.
    #[inline(never)]
    pub(super) fn welcome(
        &mut self,
        socket: Socket,
        addr: Option<IpAddr>,
        promised: bool,
        proxied: bool,
    ) {
        let most = self.kit.config.max_per_peer;
        let peer = addr.filter(|_| most > 0).map_or(Peer::UNKNOWN, Peer::of);
        if !self.peers.admits(peer, most) {
            if promised {
                self.mailbox.places.release();
            }
            self.kit.stats.refused_per_peer += 1;
            return self.refuse(socket);
        }
        if !promised && !self.finds_place() {
            self.mailbox.places.count_refused();
            return self.refuse(socket);
        }
        if let Some(id) = self.admit_accepted(socket, proxied) {
            self.peers.add(id.index(), peer);
        }
    }

    /// Shows a connection that has a place to the handler, and admits what it makes of it.
    fn admit_accepted(&mut self, socket: Socket, proxied: bool) -> Option<ConnId> {
        let handler = &mut self.kit.handler;
        match contain(|| handler.wrap(socket)) {
            Some(Ok(socket)) => match self.admit(socket, proxied) {
                Ok(id) => return Some(id),
                failed => {
                    self.lose(failed);
                    return None;
                }
            },
            Some(Err(error)) => {
                if self.kit.config.debug {
                    log::debug!("a connection was not wrapped: {}", error.kind());
                }
                dispose(error);
            }
            None => self.kit.stats.panics += 1,
        }
        self.kit.stats.admit_failures += 1;
        self.mailbox.places.release();
        None
    }

    /// Closes a connection that has a place but came too late to be served.
    pub(super) fn give_up(&mut self, socket: Socket) {
        self.mailbox.places.release();
        socket.discard();
    }

    /// Closes a connection that could not be admitted, if so.
    pub(super) fn lose(&mut self, outcome: Result<ConnId, (Socket, io::Error)>) {
        if let Err((socket, error)) = outcome {
            if self.kit.config.debug {
                log::debug!("can't put a connection: {error}");
            }
            self.kit.stats.admit_failures += 1;
            socket.discard();
        }
    }

    /// Takes the place of an idle connection, if that is what is wanted. Another thread may take it
    /// in between.
    fn finds_place(&mut self) -> bool {
        let evicts = matches!(self.kit.config.overload, Overload::EvictIdle);
        let runs = matches!(self.phase, Phase::Running);
        evicts && runs && self.evict_idle() && self.mailbox.places.take()
    }

    /// Closes an idle connection, if there is one that has nothing to say at a last read; or finds
    /// that one has gone meanwhile.
    fn evict_idle(&mut self) -> bool {
        for _ in 0..EVICTIONS {
            let Some(id) = self.pool.longest_idle(self.kit.now.stamp) else { return false };
            let Some(worker) = self.pool.get_mut(id) else { return false };
            let before = worker.vitals.bytes_in;
            self.hear(id);
            let Some(worker) = self.pool.get_mut(id) else { return true };
            let silent = worker.vitals.bytes_in == before && !worker.vitals.readable;
            if silent && worker.is_idle() {
                self.close(id, CloseReason::Evicted);
                return true;
            }
        }
        false
    }

    /// Tells an accepted connection that there is no place for it, and closes it.
    fn refuse(&mut self, mut socket: Socket) {
        let last_word = self.kit.config.overload.last_word();
        // Best effort: a socket just accepted has room, or has been reset.
        let _ = uninterrupted(|| {
            self.kit.stats.writes += 1;
            self.kit.backend.write(&mut socket, last_word)
        });
        self.linger(socket);
    }

    /// Keeps a socket that is not registered until its last reply has arrived, within bounds.
    pub(super) fn linger(&mut self, socket: Socket) {
        self.lingering.add(&mut self.kit.backend, socket, &mut self.kit.stats, self.kit.now);
    }

    /// Serves a worker with one more read: something may have come whose event has not.
    pub(super) fn hear(&mut self, id: ConnId) {
        if let Some(worker) = self.pool.get_mut(id) {
            worker.vitals.readable |= !worker.vitals.eof;
        }
        self.serve(id);
    }

    /// Serves a worker, if it is still there.
    pub(super) fn serve(&mut self, id: ConnId) {
        self.visited.push(id);
        if let Some(worker) = self.pool.get_mut(id) {
            let verdict = worker.serve(&mut self.kit);
            self.settle(id, verdict);
        }
    }

    /// Ends a worker whose time is up, unless a last read shows that its peer did speak: a process
    /// that was suspended or slow, or had more events than one wait returns, is itself late.
    #[inline(never)]
    pub(super) fn expire(&mut self, id: ConnId) {
        self.hear(id);
        let (now, deadlines) = (self.kit.now.tick, self.kit.deadlines);
        let late = |worker: &&mut Worker<_>| worker.vitals.deadline(deadlines) <= now;
        if let Some(worker) = self.pool.get_mut(id).filter(late) {
            self.kit.stats.expired += 1;
            let verdict = worker.expire(&mut self.kit);
            self.settle(id, verdict);
        }
    }

    /// The one place where a verdict is carried out.
    #[inline(never)]
    pub(super) fn settle(&mut self, id: ConnId, verdict: Verdict) {
        match verdict {
            Verdict::Close(reason) => return self.close(id, reason),
            Verdict::Again => self.pool.list(id),
            Verdict::Wait if matches!(self.phase, Phase::Stopping(_)) => {
                if self.says_farewell(id) {
                    return self.close(id, CloseReason::Stopped);
                }
            }
            Verdict::Wait => {}
        }
        self.pool.file(id, self.kit.deadlines);
    }

    /// Whether a worker has nothing more to do in a stop. What is idle now is read once more
    /// first: a request may have come whose event has not. Who waited to be accepted when the stop
    /// began may make a first request.
    fn says_farewell(&mut self, id: ConnId) -> bool {
        let Some(worker) = self.pool.get_mut(id).filter(|worker| worker.is_idle()) else {
            return false;
        };
        if worker.vitals.newcomer && worker.vitals.bytes_in == 0 && !worker.vitals.eof {
            return false;
        }
        if worker.vitals.eof || std::mem::replace(&mut worker.vitals.farewell, true) {
            return true;
        }
        worker.vitals.readable = true;
        self.pool.list(id);
        false
    }

    /// The one place where a connection is closed. What is owed was flushed before, or is not
    /// worth it.
    pub(super) fn close(&mut self, id: ConnId, reason: CloseReason) {
        let Some(worker) = self.pool.remove(id) else { return };
        let Worker { vitals, mut socket, input, output, session } = worker;
        let unknown = vitals.state.any(State::UNKNOWN);
        if unknown {
            // What came of its header is nobody's request, and is not counted as one.
            self.kit.stats.bytes_in -= vitals.bytes_in;
        }
        let dropped = if unknown { 0 } else { input.len() as u64 };
        let end = Closed {
            id,
            key: vitals.key(),
            reason,
            age: vitals.opened.until(self.kit.now.tick),
            bytes_in: vitals.bytes_in,
            bytes_out: vitals.bytes_out,
            bytes_dropped: dropped,
            bytes_unsent: output.len() as u64,
        };
        self.peers.remove(id.index());
        self.kit.stats.count_closed(reason);
        self.kit.stats.bytes_dropped += end.bytes_dropped;
        self.kit.stats.bytes_unsent += end.bytes_unsent;
        self.kit.spares.give_back(input);
        self.kit.backend.deregister(&socket);
        if self.lingers(&vitals, reason) {
            self.linger(socket);
        } else {
            if socket.is_boxed() && reason.is_polite() && output.is_empty() {
                // Best effort: it is the transport's goodbye, and nobody waits for it.
                let _ = self.kit.backend.shutdown_write(&mut socket);
            }
            socket.discard();
        }
        self.mailbox.places.release();
        if self.kit.config.debug {
            log::debug!("{id}: closed after {:?}: {reason}", end.age);
        }
        if unknown && !vitals.is_connecting() {
            return dispose(session);
        }
        self.kit.tell(|handler, commands| handler.closed(&end, session, commands));
    }

    /// Whether a reply may be on its way that unread input would destroy. A connection that is
    /// idle when a stop begins, or is cut off by one, is not waited for.
    fn lingers(&self, vitals: &Vitals, reason: CloseReason) -> bool {
        let wanted = match reason {
            CloseReason::Stopped => matches!(self.phase, Phase::Stopping(_)),
            _ => reason.is_polite(),
        };
        let recent = vitals.moved.after(lingering::TIME) > self.kit.now.tick;
        wanted && recent && vitals.bytes_out > 0 && !vitals.eof
    }
}
