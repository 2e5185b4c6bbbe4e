//! Clock: the operating system as the loop sees it, but for the time. The clock is read, and paid
//! for, as ever; what it says is how often it was read. So no deadline and no slow turn of a
//! measured program depends on how slow the measuring makes it.

use std::hint::black_box;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use pool_manager::Socket;
use pool_manager::sys::{Backend, Event, ListenSocket, Os, Wake};

/// Readings a millisecond. A turn at full speed takes a few.
const READINGS: u64 = 50;

/// Every method that a measured server uses is that of [`Os`]; it begins no connection.
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

    /// That of [`Os`] converts a reading only if it is of another millisecond than the one before,
    /// which a slow run would make many: so what is paid for here is the reading and a division.
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

    fn listen(&mut self, bound: ListenSocket, token: u64) -> io::Result<Self::Listener> {
        self.os.listen(bound, token)
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
