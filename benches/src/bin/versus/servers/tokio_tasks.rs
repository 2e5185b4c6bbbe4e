//! tokio on one thread: one task per connection, and a timeout around each wait for the peer.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};

use super::{BUFFER, Mode, Service};

pub(super) fn serve(listener: std::net::TcpListener, service: Service) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(accept(listener, service))
}

async fn accept(listener: std::net::TcpListener, service: Service) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let Service { mode, deadline } = service;
    loop {
        let (socket, _) = listener.accept().await?;
        // Ignore the error, if any: the client detects it.
        match mode {
            Mode::Echo => drop(tokio::spawn(echo(socket, deadline))),
            Mode::Lines => drop(tokio::spawn(lines(socket, deadline))),
            Mode::Idle => drop(tokio::spawn(echo_lean(socket, deadline))),
        }
    }
}

async fn echo(mut socket: TcpStream, deadline: Duration) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = timeout(deadline, socket.read(&mut buffer)).await??;
        if length == 0 {
            return Ok(());
        }
        socket.write_all(&buffer[..length]).await?;
    }
}

/// Answers a burst of lines with one write: flushes when no further line is ready, and only then
/// sets a timeout. This is the cheapest of the usual variants. A timeout for each line costs a
/// tenth more. A `send` for each line costs ten times as much.
async fn lines(socket: TcpStream, deadline: Duration) -> Result<(), LinesCodecError> {
    let mut lines = Framed::new(socket, LinesCodec::new_with_max_length(BUFFER));
    loop {
        let next = if let Some(ready) = lines.next().now_or_never() {
            ready
        } else {
            SinkExt::<String>::flush(&mut lines).await?;
            timeout(deadline, lines.next()).await.map_err(io::Error::from)?
        };
        match next {
            Some(line) => lines.feed(line?).await?,
            None => return SinkExt::<String>::flush(&mut lines).await,
        }
    }
}

/// Echoes bytes without keeping a buffer while it waits. This costs one additional read per
/// request, which finds nothing. It is the usual way to serve many silent peers.
async fn echo_lean(socket: TcpStream, deadline: Duration) -> io::Result<()> {
    loop {
        timeout(deadline, poll_fn(|context| socket.poll_read_ready(context))).await??;
        match echo_now(&socket) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
}

/// Echoes the available bytes. Returns an error if the socket does not take the reply at once.
fn echo_now(socket: &TcpStream) -> io::Result<usize> {
    let mut buffer = [0; BUFFER];
    let length = socket.try_read(&mut buffer)?;
    match socket.try_write(&buffer[..length])? {
        written if written == length => Ok(length),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
