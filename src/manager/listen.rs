//! Listening: binds listeners, takes over listeners that were bound elsewhere, and returns
//! listeners to the caller.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;

use super::Manager;
use crate::error::Error;
use crate::handler::Handler;
use crate::listen_options::ListenOptions;
use crate::sys::unix_path::{self, Claim};
use crate::sys::{Backend, ListenSocket};

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Listens on a TCP address. Returns the bound address. If the port of `addr` is 0, the system
    /// chooses a port, and the returned address contains this port. If `addr` resolves to several
    /// addresses, the first that can be bound is used. The address can be bound again right after a
    /// stop. The standard library sets the backlog (128 on most systems). [`Manager::listen_on`]
    /// takes a listener with any backlog.
    ///
    /// `TCP_NODELAY` is set on the listener, and accepted connections inherit it.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Listen`] if none of the addresses can be bound.
    pub fn listen(&mut self, addr: impl ToSocketAddrs) -> Result<SocketAddr, Error> {
        self.check_running()?;
        let failed = |addr: String| move |source| Error::Listen { addr, source };
        let addrs: Vec<SocketAddr> =
            addr.to_socket_addrs().map_err(failed("an unknown address".into()))?.collect();
        let names: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
        let name = if names.is_empty() { "no address".into() } else { names.join(" or ") };
        let listener = TcpListener::bind(&addrs[..]).map_err(failed(name.clone()))?;
        let bound = listener.local_addr().map_err(failed(name))?;
        let options = ListenOptions::default();
        self.listen_to(listener.into(), None, options, &bound.to_string())?;
        Ok(bound)
    }

    /// Accepts connections from a TCP or Unix listener that was bound elsewhere, for example by
    /// `socket2` with a backlog and options of your own, or by a parent process.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Listen`] if the listener cannot be registered.
    pub fn listen_on(&mut self, listener: impl Into<ListenSocket>) -> Result<(), Error> {
        self.listen_with(listener, ListenOptions::default())
    }

    /// Does the same as [`Manager::listen_on`], with options such as the PROXY protocol.
    ///
    /// # Errors
    /// As [`Manager::listen_on`].
    pub fn listen_with(
        &mut self,
        listener: impl Into<ListenSocket>,
        options: ListenOptions,
    ) -> Result<(), Error> {
        self.check_running()?;
        let bound = listener.into();
        let name = bound.addr().map_or_else(|| "a Unix socket".into(), |addr| addr.to_string());
        self.listen_to(bound, None, options, &name)
    }

    /// Listens on a Unix domain socket at `path`. The path has mode 0600 from the moment at which
    /// it exists. A stale socket at the path is replaced. A socket on which a process listens is
    /// not replaced. A stop removes the path.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Listen`] if the path is in use, is not a socket, is too long
    /// for a socket address (107 bytes on Linux), or cannot be written.
    pub fn listen_unix(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.check_running()?;
        let path = path.as_ref();
        let name = path.display().to_string();
        let (listener, claim) =
            unix_path::bind(path).map_err(|source| Error::Listen { addr: name.clone(), source })?;
        self.listen_to(listener.into(), Some(claim), ListenOptions::default(), &name)
    }

    /// Removes the listeners from the manager and returns them. The listeners are not closed. Open
    /// connections are served as before. New clients wait in the kernel's accept queue until
    /// another manager or process accepts from the listeners. No client is therefore refused during
    /// a handover. A returned listener can be passed to [`Manager::listen_on`] again.
    ///
    /// The listeners are non-blocking and close-on-exec (`FD_CLOEXEC`); the example `restart` shows
    /// how to pass them to a new process. After this call, a stop does not remove the path of a
    /// Unix socket. The result is empty if the manager is not running. It is also empty during a
    /// stop, because a stop closes the listeners itself.
    ///
    /// ```
    /// use pool_manager::{Config, Manager};
    /// use std::io::Write;
    /// let [mut old, mut new] = [(); 2].map(|()| {
    ///     Manager::new(Config::new(), |conn, _| conn.write_all(b"OK")).expect("a configuration")
    /// });
    /// old.start()?;
    /// new.start()?;
    /// old.listen("127.0.0.1:0")?;
    /// for listener in old.take_listeners() {
    ///     new.listen_on(listener)?;
    /// }
    /// old.stop()?;
    /// # Ok::<(), pool_manager::Error>(())
    /// ```
    #[must_use = "a listener that is dropped is closed, and clients in its accept queue are reset"]
    pub fn take_listeners(&mut self) -> Vec<ListenSocket> {
        if !self.is_running() {
            return Vec::new();
        }
        let taken = self.listeners.take(&mut self.cx.backend);
        if !taken.is_empty() {
            log::info!("no longer listening: {} listeners are handed over", taken.len());
        }
        taken
    }

    fn listen_to(
        &mut self,
        bound: ListenSocket,
        claim: Option<Claim>,
        options: ListenOptions,
        name: &str,
    ) -> Result<(), Error> {
        self.listeners
            .listen(&mut self.cx.backend, bound, claim, options)
            .map_err(|source| Error::Listen { addr: name.into(), source })?;
        log::info!("listening on {name}");
        Ok(())
    }
}
