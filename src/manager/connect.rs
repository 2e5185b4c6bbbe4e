//! Outgoing connections. An outgoing connection has a worker and a deadline from the start.
//! [`Handler::opened`] is called when it is established.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::Manager;
use crate::conn_state::{CloseReason, ConnState};
use crate::connect_options::{ConnectOptions, ConnectRequest};
use crate::error::Error;
use crate::handler::{Closed, Handler};
use crate::id::ConnId;
use crate::socket::uninterrupted;
use crate::sys::Backend;

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Starts a TCP connection to `addr` and returns at once. The connection uses a worker from now
    /// on. In a later turn, when the connection is established, [`Handler::opened`] is called. From
    /// then on, it is a connection like any other. `TCP_NODELAY` is set on its socket. If the
    /// connection fails, or is not established within
    /// [`connect_deadline`](crate::Config::connect_deadline), [`Handler::closed`] is called with
    /// [`CloseReason::Unreachable`]. [`max_per_peer`](crate::Config::max_per_peer) does not count
    /// outgoing connections.
    ///
    /// Bytes that are [queued](crate::Handle::send) for the connection before it is established are
    /// sent after the bytes that `opened` writes. A connection that is not established yet is
    /// closed at once by [`Handle::close`](crate::Handle::close) and by a stop. A pause takes
    /// effect when the connection is established.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Busy`]; [`Error::Connect`] if the attempt fails at once, for
    /// example because there is no route or no free descriptor. In this case `closed` is not
    /// called.
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
    ///     fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<()> {
    ///         conn.write_all(b"hello")
    ///     }
    ///
    ///     fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
    ///         println!("{:?} says {} bytes", conn.peer_addr(), body.len());
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

    /// Does the same as [`Manager::connect`], with options such as a deadline or a key for this
    /// connection.
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
        // Read the clock again, so that the time until the next turn does not count as a slow turn.
        self.read_clock();
        outcome.map_err(|source| Error::Connect { addr, source })
    }

    /// Starts a connection that a callback or a handle has requested. The permit was acquired when
    /// the connection was requested. If the connection cannot be started, [`Handler::closed`] is
    /// called as for a connection that fails later.
    pub(super) fn execute_connect(&mut self, request: ConnectRequest) {
        if !self.is_running() {
            if let Some(drain) = &mut self.drain {
                drain.idle += 1;
            }
            return self.abandon_connect(request);
        }
        if let Err(error) = self.start_connect(request) {
            self.report_not_started(request, CloseReason::Unreachable, Some(error));
        }
    }

    /// Releases the permit of a queued connection, because the manager stops. Calls
    /// [`Handler::closed`] with the reason [`CloseReason::Stopped`].
    pub(super) fn abandon_connect(&mut self, request: ConnectRequest) {
        self.mailbox.permits.release();
        self.report_not_started(request, CloseReason::Stopped, None);
    }

    /// Starts a connection that has a permit, and creates its worker. On failure the permit is
    /// released.
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

    /// Calls [`Handler::closed`] for a connection that was not started. The connection gets an id
    /// that no other connection has.
    fn report_not_started(
        &mut self,
        request: ConnectRequest,
        reason: CloseReason,
        error: Option<io::Error>,
    ) {
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
            error,
            age: Duration::ZERO,
            bytes_in: 0,
            bytes_out: 0,
            bytes_dropped: 0,
            bytes_unsent: 0,
        };
        self.cx.run_hook(|handler, commands| handler.closed(&closed, None, commands));
    }
}
