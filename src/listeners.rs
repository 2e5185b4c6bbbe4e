//! Listeners: when to accept, how much at a time, and why not now.
//!
//! Readiness of a listener is edge-triggered as well, so it is remembered until `accept` says
//! `WouldBlock`. A listener that may not run now is not forgotten either: it runs as soon as the
//! reason is gone. What is done with an accepted connection is the manager's affair.

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::time::Duration;

use crate::config::Overload;
use crate::id::Token;
use crate::listen_options::ListenOptions;
use crate::shared::permits::Permits;
use crate::socket::Socket;
use crate::stats::Stats;
use crate::sys::unix_path::Claim;
use crate::sys::{Backend, ListenSocket};
use crate::time::{Now, Tick};

/// Connections accepted from one listener a turn.
pub(crate) const ACCEPTS: u32 = 64;

/// Connections accepted from one listener once a stop has begun: as many as Linux lets a queue
/// hold unless told otherwise (`net.core.somaxconn`).
const LAST_ACCEPTS: u32 = 4096;

/// How long to pause when descriptors have run out: at most 20 attempts a second, and never
/// more than 100 ms behind a descriptor that was freed.
const STARVED_PAUSE: Duration = Duration::from_millis(60);
const WARN_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Listener<L> {
    /// `None` once it has closed, before the others have.
    socket: Option<L>,
    /// The kernel said that there is something to accept, and no `WouldBlock` came since.
    ready: bool,
    /// Errors since it last accepted something, or had nothing to accept.
    errors: u32,
    /// It accepts nothing before this, because it had nothing but errors.
    paused_until: Tick,
    options: ListenOptions,
    /// How often it accepts before it closes, once a stop has begun.
    last: Option<u32>,
    /// The path to remove at the end, for one in the file system.
    claim: Option<Claim>,
}

impl<L> Listener<L> {
    /// Notes an error that seems to concern one connection. If there is nothing else for as long
    /// as a turn accepts, it does not, and asking at once again would only burn time.
    fn fail(&mut self, now: Now) {
        self.errors += 1;
        if self.errors == ACCEPTS {
            self.errors = 0;
            self.paused_until = now.ceil.after(STARVED_PAUSE);
        }
    }
}

/// All listeners of a manager. What starves one starves all, so they pause together.
#[derive(Debug)]
pub(crate) struct Listeners<L> {
    all: Vec<Listener<L>>,
    /// How many of them are ready: asked three times a turn, so kept at hand.
    ready: usize,
    /// Nothing is accepted before this, because descriptors or kernel memory ran out.
    starved_until: Tick,
    warned: Option<Tick>,
}

/// What one attempt to accept gave.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A connection, its peer's address if it is the client's, whether it has a place, and whether it
    /// begins with a header that says who the client is.
    Connection { socket: Socket, addr: Option<IpAddr>, promised: bool, proxied: bool },
    /// An error of this one connection: the next may be well.
    Skip,
    /// Nothing more now.
    Nothing,
}

impl<L> Listeners<L> {
    pub(crate) fn new() -> Self {
        Self { all: Vec::new(), ready: 0, starved_until: Tick(0), warned: None }
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn listen<B: Backend<Listener = L>>(
        &mut self,
        backend: &mut B,
        bound: ListenSocket,
        claim: Option<Claim>,
        options: ListenOptions,
    ) -> io::Result<()> {
        let token = Token::Listener(self.all.len()).pack();
        let socket = backend.listen(bound, token)?;
        self.all.push(Listener {
            socket: Some(socket),
            ready: false,
            errors: 0,
            paused_until: Tick(0),
            options,
            last: None,
            claim,
        });
        Ok(())
    }

    /// Notes that there is something to accept. False if there is no such listener.
    pub(crate) fn mark_ready(&mut self, index: usize) -> bool {
        let open = |listener: &&mut Listener<L>| listener.socket.is_some();
        let Some(listener) = self.all.get_mut(index).filter(open) else { return false };
        self.ready += usize::from(!std::mem::replace(&mut listener.ready, true));
        true
    }

    /// Whether one of them has not closed.
    pub(crate) fn any_open(&self) -> bool {
        self.all.iter().any(|listener| listener.socket.is_some())
    }

    /// Whether one of them has something to accept, now or later.
    pub(crate) fn any_ready(&self) -> bool {
        self.ready > 0
    }

    /// From when on there is something to accept; `NEVER` if there is nothing, or no place for it.
    pub(crate) fn next_due(&self, permits: &Permits, overload: &Overload) -> Tick {
        if self.ready == 0 {
            return Tick::NEVER;
        }
        let ready = self.all.iter().filter(|listener| listener.ready);
        match ready.map(|listener| listener.paused_until).min() {
            Some(until) if !is_paused(permits, overload) => until.max(self.starved_until),
            _ => Tick::NEVER,
        }
    }

    /// Takes one connection from a listener's queue. Its place is taken before it is accepted,
    /// so that one left in the queue was never promised anything.
    #[inline(never)]
    pub(crate) fn accept<B: Backend<Listener = L>>(
        &mut self,
        index: usize,
        backend: &mut B,
        permits: &Permits,
        overload: &Overload,
        stats: &mut Stats,
        now: Now,
    ) -> Accepted {
        let listener = &mut self.all[index];
        let Some(socket) = &mut listener.socket else { return Accepted::Nothing };
        if !listener.ready || listener.paused_until.max(self.starved_until) > now.floor {
            return Accepted::Nothing;
        }
        let promised = permits.try_acquire();
        if !promised && is_paused(permits, overload) {
            return Accepted::Nothing;
        }
        stats.accepts += 1;
        listener.last = listener.last.map(|last| last.saturating_sub(1));
        let outcome = backend.accept(socket);
        if outcome.is_err() && promised {
            permits.release();
        }
        match outcome {
            Ok((socket, addr)) => {
                self.all[index].errors = 0;
                stats.accepted += 1;
                let options = &self.all[index].options;
                // A socket that was reset meanwhile no longer says whose it was.
                let proxied = options.has_proxies() && options.trusts(addr);
                let addr = addr.filter(|_| !proxied);
                Accepted::Connection { socket, addr, promised, proxied }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.all[index].errors = 0;
                self.rest(index)
            }
            Err(error) if concerns_one(&error) => {
                stats.accept_errors += 1;
                self.all[index].fail(now);
                Accepted::Skip
            }
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                // Somebody who shares it has shut it down: it will never accept again.
                log::warn!("a listener no longer listens: {error}");
                self.rest(index)
            }
            Err(error) => {
                stats.fd_exhausted += 1;
                self.starve(&error, now);
                Accepted::Nothing
            }
        }
    }

    /// A listener has nothing more to accept.
    fn rest(&mut self, index: usize) -> Accepted {
        self.ready -= usize::from(std::mem::take(&mut self.all[index].ready));
        Accepted::Nothing
    }

    /// Gives all of them back, with who waits in their queues; paths stay where they are.
    pub(crate) fn take<B: Backend<Listener = L>>(&mut self, backend: &mut B) -> Vec<ListenSocket> {
        self.ready = 0;
        let all = self.all.drain(..);
        all.filter_map(|listener| {
            listener.claim.into_iter().for_each(Claim::abandon);
            backend.release_listener(listener.socket?)
        })
        .collect()
    }

    /// From now on each closes once it has accepted who waits: closing now would reset them.
    pub(crate) fn finish(&mut self) {
        for listener in &mut self.all {
            listener.ready = true;
            listener.last = Some(LAST_ACCEPTS);
        }
        self.ready = self.all.len();
    }

    /// Closes a listener that is to, if nobody waits any more or it has accepted enough.
    pub(crate) fn close_finished<B: Backend<Listener = L>>(
        &mut self,
        index: usize,
        backend: &mut B,
    ) {
        let listener = &mut self.all[index];
        if listener.last.is_some_and(|last| last == 0 || !listener.ready) {
            if let Some(socket) = listener.socket.take() {
                backend.close_listener(socket);
            }
            listener.claim = None;
            self.rest(index);
        }
    }

    /// Stops listening.
    pub(crate) fn clear<B: Backend<Listener = L>>(&mut self, backend: &mut B) {
        for socket in self.all.drain(..).filter_map(|listener| listener.socket) {
            backend.close_listener(socket);
        }
        self.ready = 0;
        self.starved_until = Tick(0);
    }

    fn starve(&mut self, error: &io::Error, now: Now) {
        self.starved_until = now.ceil.after(STARVED_PAUSE);
        if self.warned.is_none_or(|warned| warned.after(WARN_INTERVAL) <= now.floor) {
            self.warned = Some(now.ceil);
            log::warn!(
                "can't accept, will try again: {error}; raise the descriptor limit or lower max_workers"
            );
        }
    }
}

fn is_paused(permits: &Permits, overload: &Overload) -> bool {
    matches!(overload, Overload::Pause) && !permits.any_free()
}

/// `accept(2)` also reports errors of the connection that it would have returned. What is none of
/// these and not `WouldBlock` is taken for a shortage (`EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`).
fn concerns_one(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Interrupted
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::PermissionDenied
            | ErrorKind::TimedOut
            | ErrorKind::NetworkDown
            | ErrorKind::NetworkUnreachable
            | ErrorKind::HostUnreachable
            | ErrorKind::Unsupported
    )
}
