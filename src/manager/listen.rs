//! Listening: binds listeners, takes listeners that were bound elsewhere, and gives them back.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;

use super::Manager;
use crate::error::Error;
use crate::handler::Handler;
use crate::listen_options::ListenOptions;
use crate::sys::unix_path::{self, Claim};
use crate::sys::{Backend, ListenSocket};

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Listens on a TCP address and returns the one bound, with the port the system chose for
    /// port 0. The address can be used again right after a stop. The backlog is the standard
    /// library's (128 on most systems); [`Manager::listen_on`] takes a listener with any.
    ///
    /// `TCP_NODELAY` is set, and inherited by what is accepted.
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

    /// Listens on a TCP or Unix listener that was bound elsewhere, by `socket2` with a backlog
    /// or options of your own, or by a parent process.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Listen`] if it cannot be waited for.
    pub fn listen_on(&mut self, listener: impl Into<ListenSocket>) -> Result<(), Error> {
        self.listen_with(listener, ListenOptions::default())
    }

    /// As [`Manager::listen_on`], with options: connections that a balancer passes on, for one.
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

    /// Listens on a Unix domain socket at `path`, with mode 0600 from the first moment on. A
    /// stale socket there is replaced, a live one is not. The path is removed at stop.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Listen`] if the path is in use, is no socket, is too
    /// long for a socket's address (107 bytes on Linux), or cannot be written.
    pub fn listen_unix(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.check_running()?;
        let path = path.as_ref();
        let name = path.display().to_string();
        let (listener, claim) =
            unix_path::bind(path).map_err(|source| Error::Listen { addr: name.clone(), source })?;
        self.listen_to(listener.into(), Some(claim), ListenOptions::default(), &name)
    }

    /// Gives the listeners back, without closing them, and accepts no more: those who connect wait
    /// in the kernel's backlog until somebody else does. Connections are served as before. So a
    /// successor, another manager or another process, can go on with them, and nobody is refused
    /// in between; [`Manager::listen_on`] takes one back if there is none.
    ///
    /// They are non-blocking, and closed when another program is executed unless that is changed
    /// (`FD_CLOEXEC`; the example `restart` shows how, and what to do with who is still here). A
    /// Unix socket's path is no longer removed at stop. Empty if the manager is not running, or
    /// stopping, which closes them.
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
    #[must_use = "listeners that are dropped are closed, and who waits at them is reset"]
    pub fn take_listeners(&mut self) -> Vec<ListenSocket> {
        if !self.is_running() {
            return Vec::new();
        }
        let taken = self.listeners.take(&mut self.cx.backend);
        if !taken.is_empty() {
            log::info!("no longer listening: {} listeners are handed on", taken.len());
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
