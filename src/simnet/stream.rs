//! A handle to one end of a simulated connection.

use std::io::{self, Read, Write};

use super::{Shared, lock};

/// One end of a simulated connection. A stream never blocks. Dropping a stream closes its end of
/// the connection.
///
/// Both the peer in a test and the socket that the pool serves are streams of this type.
///
/// ```
/// use pool_manager::sim::Sim;
/// use std::io::{Read, Write};
///
/// let sim = Sim::new(1);
/// let (mut here, mut there) = sim.pair();
/// here.write_all(b"hello")?;
/// let mut bytes = [0; 8];
/// assert_eq!(there.read(&mut bytes)?, 5);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Stream {
    net: Shared,
    end: usize,
}

impl Stream {
    pub(crate) fn new(net: Shared, end: usize) -> Self {
        Self { net, end }
    }

    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// Returns the number of the connection. It is the same at both ends.
    #[must_use]
    pub fn connection(&self) -> usize {
        lock(&self.net).connection(self.end)
    }

    /// Shuts down the sending side. The peer then reads an end of file.
    ///
    /// # Errors
    /// `NotConnected` if the connection was reset.
    pub fn shutdown_write(&self) -> io::Result<()> {
        lock(&self.net).shutdown_write(self.end)
    }

    /// Closes the connection with a reset.
    pub fn reset(self) {
        lock(&self.net).reset_peer_of(self.end);
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        lock(&self.net).read(self.end, into)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.net).write(self.end, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        lock(&self.net).close(self.end);
    }
}
