//! Clock: the operating system's backend with a different clock. Each reading of the time reads the
//! real clock, at its usual cost, but returns a time that is computed from the number of readings.
//! The deadlines and slow turns of a measured program therefore do not depend on the speed of the
//! measuring tool.

use std::hint::black_box;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use pool_manager::Socket;
use pool_manager::sys::{Backend, Event, ListenSocket, Os, Wake};

/// Readings per millisecond of the returned time. A turn reads the clock a few times.
const READINGS: u64 = 50;

/// Delegates to [`Os`] all methods that a measured server uses, except those that read the clock.
/// Methods for outgoing connections are missing, because a measured server opens none.
pub(crate) struct Clocked {
    os: Os,
    readings: u64,
}

impl Clocked {
    pub(crate) fn new() -> Self {
        Self { os: Os::new().expect("the event loop"), readings: 0 }
    }
}

impl Backend for Clocked {
    type Listener = <Os as Backend>::Listener;

    fn start(&mut self) -> io::Result<Wake> {
        self.os.start()
    }

    fn stop(&mut self) {
        self.os.stop();
    }

    #[inline]
    fn now(&mut self) -> Duration {
        black_box(self.os.now());
        self.readings += 1;
        Duration::from_millis(self.readings) / READINGS as u32
    }

    /// [`Os`] converts a reading only if it is in another millisecond than the previous reading. In
    /// a slow run, [`Os`] would therefore convert more readings. This method always costs one
    /// reading and one division.
    #[inline]
    fn millis(&mut self) -> (u64, bool) {
        black_box(Instant::now());
        self.readings += 1;
        (self.readings / READINGS, !self.readings.is_multiple_of(READINGS))
    }

    #[inline]
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.os.wait(timeout)
    }

    #[inline]
    fn events(&mut self, each: impl FnMut(Event)) {
        self.os.events(each);
    }

    fn register(&mut self, socket: &Socket, token: u64) -> io::Result<()> {
        self.os.register(socket, token)
    }

    fn deregister(&mut self, socket: &Socket) {
        self.os.deregister(socket);
    }

    fn listen(&mut self, socket: ListenSocket, token: u64) -> io::Result<Self::Listener> {
        self.os.listen(socket, token)
    }

    fn close_listener(&mut self, listener: Self::Listener) {
        self.os.close_listener(listener);
    }

    fn accept(&mut self, listener: &mut Self::Listener) -> io::Result<(Socket, Option<IpAddr>)> {
        self.os.accept(listener)
    }

    #[inline]
    fn read(&mut self, socket: &mut Socket, into: &mut [u8]) -> io::Result<usize> {
        self.os.read(socket, into)
    }

    #[inline]
    fn write(&mut self, socket: &mut Socket, bytes: &[u8]) -> io::Result<usize> {
        self.os.write(socket, bytes)
    }

    #[inline]
    fn flush(&mut self, socket: &mut Socket) -> io::Result<()> {
        self.os.flush(socket)
    }

    fn shutdown_write(&mut self, socket: &mut Socket) -> io::Result<()> {
        self.os.shutdown_write(socket)
    }

    #[inline]
    fn short_read_is_drained(&self, socket: &Socket) -> bool {
        self.os.short_read_is_drained(socket)
    }
}
