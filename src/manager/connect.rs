//! Connecting: connections that begin here. Until one is there it has a worker and a deadline, and
//! the handler does not know of it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::Manager;
use crate::conn_state::{CloseReason, ConnState};
use crate::connect_options::{ConnectOptions, ConnectRequest};
use crate::error::Error;
use crate::handler::{Closed, Handler};
use crate::id::ConnId;
use crate::panics::catch;
use crate::socket::uninterrupted;
use crate::sys::Backend;

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Begins a TCP connection to `addr`, and waits for nothing: it takes a worker's place from now
    /// on. Once it is there, in a turn to come, [`Handler::opened`] runs, and it is a connection like
    /// any other, with `TCP_NODELAY` set. If that takes longer than
    /// [`connect_deadline`](crate::Config::connect_deadline), or fails, [`Handler::closed`] is told
    /// ([`CloseReason::Unreachable`]). [`max_per_peer`](crate::Config::max_per_peer) does not count
    /// it.
    ///
    /// What it is [sent](crate::Handle::send) until then goes out once it is there, behind what
    /// `opened` writes. [`Handle::close`](crate::Handle::close) and a stop end it at once; a pause
    /// begins when it is there.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Busy`]; [`Error::Connect`] if it fails at once, for want of a
    /// route or of descriptors. `closed` is not called then.
    ///
    /// ```
    /// use pool_manager::{Config, Conn, Handler, Manager};
    /// use std::io::{self, Write};
    /// use std::time::Duration;
    ///
    /// struct Client;
    ///
    /// impl Handler for Client {
    ///     type Session = ();
    ///
    ///     fn opened(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
    ///         conn.write_all(b"hello")
    ///     }
    ///
    ///     fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), reply: &[u8]) -> io::Result<()> {
    ///         println!("{:?} says {} bytes", conn.peer_addr(), reply.len());
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let server = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let mut manager = Manager::with_handler(Config::new(), Client)?;
    /// manager.start()?;
    /// manager.connect(server.local_addr()?)?;
    /// while manager.stats().bytes_out < 5 {
    ///     manager.turn(Some(Duration::from_secs(1)))?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn connect(&mut self, addr: SocketAddr) -> Result<ConnId, Error> {
        self.connect_with(addr, ConnectOptions::default())
    }

    /// As [`Manager::connect`], with a deadline of its own, or a key.
    ///
    /// # Errors
    /// As [`Manager::connect`].
    pub fn connect_with(
        &mut self,
        addr: SocketAddr,
        options: ConnectOptions,
    ) -> Result<ConnId, Error> {
        self.check_running()?;
        self.mailbox.take_permit()?;
        self.read_clock();
        let outcome = self.start_connect(ConnectRequest::new(addr, options));
        // What follows is not what took us long.
        self.read_clock();
        outcome.map_err(|source| Error::Connect { addr, source })
    }

    /// Begins a connection that a callback or a handle asked for, which has a place. If it cannot
    /// begin, that is told as it is of one that ends later.
    pub(super) fn execute_connect(&mut self, request: ConnectRequest) {
        if !self.is_running() {
            if let Some(drain) = &mut self.drain {
                drain.idle += 1;
            }
            return self.abandon_connect(request);
        }
        if let Err(error) = self.start_connect(request) {
            self.report_not_started(request, CloseReason::Unreachable(error.kind()));
        }
    }

    /// A connection that was asked for comes too late: all has stopped.
    pub(super) fn abandon_connect(&mut self, request: ConnectRequest) {
        self.mailbox.permits.release();
        self.report_not_started(request, CloseReason::Stopped);
    }

    /// Makes a worker of a connection that begins, whose place is taken; on failure the place is
    /// free again.
    fn start_connect(&mut self, request: ConnectRequest) -> io::Result<ConnId> {
        let socket = match uninterrupted(|| self.cx.backend.connect(request.addr)) {
            Ok(socket) => socket,
            Err(error) => {
                self.mailbox.permits.release();
                return Err(error);
            }
        };
        let mut state = ConnState::new(self.pool.next_id(), self.cx.now);
        state.set_connecting(request.key(), request.deadline(self.cx.config.connect_deadline));
        let id = self.register(state, socket).map_err(|(socket, error)| {
            socket.close();
            error
        })?;
        self.cx.stats.connects += 1;
        if self.cx.config.debug {
            log::debug!("{id}: connecting to {}", request.addr);
        }
        Ok(id)
    }

    /// Tells of the end of a connection that did not begin, under an id of its own.
    fn report_not_started(&mut self, request: ConnectRequest, reason: CloseReason) {
        let id = self.pool.use_up_id();
        self.cx.stats.put += 1;
        self.cx.stats.connects += 1;
        self.cx.stats.count_closed(reason);
        if self.cx.config.debug {
            log::debug!("{id}: not connected to {}: {reason}", request.addr);
        }
        let closed = Closed {
            id,
            key: request.key(),
            reason,
            age: Duration::ZERO,
            bytes_in: 0,
            bytes_out: 0,
            bytes_dropped: 0,
            bytes_unsent: 0,
        };
        match catch(H::Session::default) {
            Some(session) => {
                self.cx.run_hook(|handler, commands| handler.closed(&closed, session, commands))
            }
            None => self.cx.stats.panics += 1,
        }
    }
}
