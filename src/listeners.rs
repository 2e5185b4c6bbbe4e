//! The listeners. This module decides when to accept connections, and how many at a time.
//!
//! The readiness of a listener is edge-triggered, so it is remembered until `accept` returns
//! `WouldBlock`. A ready listener may have to pause, for example until a worker is free. It accepts
//! again as soon as the reason for the pause no longer applies. The manager decides what happens to
//! accepted connections.

mod signals;

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
use signals::Signals;

/// Maximum number of connections accepted from one listener per turn.
pub(crate) const ACCEPTS: u32 = 64;

/// Maximum number of connections accepted from one listener once a stop has begun. It equals the
/// default of `net.core.somaxconn`, which limits the backlog on Linux.
const LAST_ACCEPTS: u32 = 4096;

/// Duration of the pause after descriptors have run out. With this value there are at most 20
/// attempts per second, and accepting continues less than 100 ms after a descriptor is freed.
const STARVED_PAUSE: Duration = Duration::from_millis(60);
const WARN_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Listener<L> {
    /// `None` after this listener has closed during a stop. Other listeners may still be open.
    socket: Option<L>,
    /// The kernel reported a connection to accept, and `accept` has not returned `WouldBlock`
    /// since.
    ready: bool,
    /// The number of errors in a row. An accepted connection, `WouldBlock` or a pause resets it.
    errors: u32,
    /// The listener accepts nothing before this tick, because too many errors came in a row.
    paused_until: Tick,
    options: ListenOptions,
    /// `None` before a stop. During a stop, the number of calls of `accept` that are left before
    /// the listener closes.
    last: Option<u32>,
    /// The path of a Unix socket, which is removed when the listener closes.
    claim: Option<Claim>,
}

impl<L> Listener<L> {
    /// Counts an error that concerns one connection. After [`ACCEPTS`] errors in a row, a single
    /// connection is unlikely to be the cause. The listener then pauses, because trying again at
    /// once would only waste time.
    fn fail(&mut self, now: Now) {
        self.errors += 1;
        if self.errors == ACCEPTS {
            self.errors = 0;
            self.paused_until = now.ceil.after(STARVED_PAUSE);
        }
    }
}

/// All listeners of a manager. A lack of descriptors affects all of them, so they pause together.
#[derive(Debug)]
pub(crate) struct Listeners<L> {
    all: Vec<Listener<L>>,
    /// Sockets whose bytes are requests to stop. They stay open when the listeners close.
    signals: Signals,
    /// The number of ready listeners and signals. It is stored because every turn reads it more
    /// than once.
    ready: usize,
    /// Nothing is accepted before this tick, because descriptors or kernel memory ran out.
    starved_until: Tick,
    warned: Option<Tick>,
}

/// The result of one attempt to accept.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A connection. `addr` is the peer's IP address. It is `None` if the peer has no IP address,
    /// or if `proxied` is true. `proxied` says whether a PROXY header follows. `has_permit` says
    /// whether a permit was taken for the connection.
    Connection { socket: Socket, addr: Option<IpAddr>, has_permit: bool, proxied: bool },
    /// Accepting one connection failed. Accepting the next one may succeed.
    Skip,
    /// Nothing more can be accepted now.
    Nothing,
}

impl<L> Listeners<L> {
    pub(crate) fn new() -> Self {
        Self {
            all: Vec::new(),
            signals: Signals::default(),
            ready: 0,
            starved_until: Tick(0),
            warned: None,
        }
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

    /// Notes that a listener has connections to accept, or that a signal is readable. Returns false
    /// if no open listener and no open signal has this index.
    pub(crate) fn mark_ready(&mut self, index: usize) -> bool {
        let open = |listener: &&mut Listener<L>| listener.socket.is_some();
        let Some(listener) = self.all.get_mut(index).filter(open) else {
            return self.mark_signal(index);
        };
        self.ready += usize::from(!std::mem::replace(&mut listener.ready, true));
        true
    }

    #[cold]
    fn mark_signal(&mut self, index: usize) -> bool {
        let marked = self.signals.mark_ready(index);
        self.ready += usize::from(marked == Some(true));
        marked.is_some()
    }

    /// Adds a socket whose bytes are requests to stop. If `running` is true, registers it.
    pub(crate) fn add_signal<B: Backend<Listener = L>>(
        &mut self,
        backend: &mut B,
        socket: Socket,
        running: bool,
    ) -> io::Result<()> {
        self.signals.add(backend, socket, running)
    }

    /// Registers the signals, because the manager starts. On failure, none is registered.
    pub(crate) fn register_signals<B: Backend<Listener = L>>(
        &mut self,
        backend: &mut B,
    ) -> io::Result<()> {
        self.signals.register(backend)
    }

    /// Returns whether a signal is ready.
    pub(crate) fn any_signal(&self) -> bool {
        self.signals.ready() > 0
    }

    /// Reads the ready signals, with a limited number of reads. Returns whether any bytes were
    /// read.
    pub(crate) fn read_signals<B: Backend<Listener = L>>(&mut self, backend: &mut B) -> bool {
        let before = self.signals.ready();
        let any = self.signals.read(backend);
        self.ready -= before - self.signals.ready();
        any
    }

    /// Removes all listeners. From now on, `ready` counts only signals.
    fn forget_listeners(&mut self) {
        self.all.clear();
        self.ready = self.signals.ready();
    }

    /// Returns whether a listener is still open.
    pub(crate) fn any_open(&self) -> bool {
        self.all.iter().any(|listener| listener.socket.is_some())
    }

    /// Returns whether any signal or listener is ready. A listener that pauses is still ready if it
    /// has connections to accept.
    pub(crate) fn any_ready(&self) -> bool {
        self.ready > 0
    }

    /// Returns the tick from which a connection can be accepted, or 0 if a signal is ready. Returns
    /// `NEVER` if nothing is ready, or if accepting is paused until a worker is free.
    pub(crate) fn next_due(&self, permits: &Permits, overload: &Overload) -> Tick {
        if self.ready == 0 {
            return Tick::NEVER;
        }
        if self.any_signal() {
            return Tick(0);
        }
        let ready = self.all.iter().filter(|listener| listener.ready);
        match ready.map(|listener| listener.paused_until).min() {
            Some(until) if !is_paused(permits, overload) => until.max(self.starved_until),
            _ => Tick::NEVER,
        }
    }

    /// Accepts one connection. A permit is taken first. If no permit is free and the configuration
    /// is [`Overload::Pause`], the connection stays in the backlog.
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
        let has_permit = permits.try_acquire();
        if !has_permit && is_paused(permits, overload) {
            return Accepted::Nothing;
        }
        stats.accepts += 1;
        listener.last = listener.last.map(|last| last.saturating_sub(1));
        let outcome = backend.accept(socket);
        if outcome.is_err() && has_permit {
            permits.release();
        }
        match outcome {
            Ok((socket, addr)) => {
                self.all[index].errors = 0;
                stats.accepted += 1;
                let options = &self.all[index].options;
                // Use the address that `accept` returned. If the connection was reset since then,
                // the socket has no address any more.
                let proxied = options.has_proxies() && options.trusts(addr);
                let addr = addr.filter(|_| !proxied);
                Accepted::Connection { socket, addr, has_permit, proxied }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.all[index].errors = 0;
                self.drained(index)
            }
            Err(error) if concerns_one(&error) => {
                stats.accept_errors += 1;
                self.all[index].fail(now);
                Accepted::Skip
            }
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                // The listener was shut down through a shared descriptor. It will never accept
                // again.
                log::warn!("a listener no longer listens: {error}");
                self.drained(index)
            }
            Err(error) => {
                stats.fd_exhausted += 1;
                self.starve(&error, now);
                Accepted::Nothing
            }
        }
    }

    /// Marks a listener as not ready.
    fn drained(&mut self, index: usize) -> Accepted {
        self.ready -= usize::from(std::mem::take(&mut self.all[index].ready));
        Accepted::Nothing
    }

    /// Removes and returns all open listeners. The connections in their backlogs are kept. The
    /// paths of Unix sockets are not removed.
    pub(crate) fn take<B: Backend<Listener = L>>(&mut self, backend: &mut B) -> Vec<ListenSocket> {
        let all = self.all.drain(..);
        let taken = all.filter_map(|listener| {
            listener.claim.into_iter().for_each(Claim::abandon);
            backend.release_listener(listener.socket?)
        });
        let taken = taken.collect();
        self.forget_listeners();
        taken
    }

    /// Makes each listener close when its backlog is empty. Closing at once would reset the
    /// connections in the backlog.
    pub(crate) fn finish(&mut self) {
        for listener in &mut self.all {
            self.ready += usize::from(!std::mem::replace(&mut listener.ready, true));
            listener.last = Some(LAST_ACCEPTS);
        }
    }

    /// Closes a listener if its backlog is empty or its limit of accepts is reached. Does nothing
    /// unless [`Listeners::finish`] was called.
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
            self.drained(index);
        }
    }

    /// Closes all listeners and deregisters the signals, because the manager has stopped.
    pub(crate) fn stop<B: Backend<Listener = L>>(&mut self, backend: &mut B) {
        self.signals.deregister(backend);
        self.clear(backend);
    }

    /// Closes all listeners.
    pub(crate) fn clear<B: Backend<Listener = L>>(&mut self, backend: &mut B) {
        for socket in self.all.drain(..).filter_map(|listener| listener.socket) {
            backend.close_listener(socket);
        }
        self.forget_listeners();
        self.starved_until = Tick(0);
    }

    fn starve(&mut self, error: &io::Error, now: Now) {
        self.starved_until = now.ceil.after(STARVED_PAUSE);
        if self.warned.is_none_or(|warned| warned.after(WARN_INTERVAL) <= now.floor) {
            self.warned = Some(now.ceil);
            log::warn!(
                "can't accept, will try again: {error}; raise the descriptor limit or lower \
                 max_workers"
            );
        }
    }
}

fn is_paused(permits: &Permits, overload: &Overload) -> bool {
    matches!(overload, Overload::Pause) && !permits.any_free()
}

/// Returns whether an error concerns only the connection that `accept(2)` would have returned. All
/// other errors except `WouldBlock` and `InvalidInput` are treated as a shortage of resources
/// (`EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`).
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
