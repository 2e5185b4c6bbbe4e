//! tokio on one thread: a task a connection, a timeout around each wait for the peer.

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
        // How a connection ends is its own affair: the client sees it.
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
/// sets a timeout. It is the cheapest of what users write: a timeout for each line costs a tenth
/// more, a `send` for each line ten times as much.
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

/// Has no buffer while it waits, at the cost of a read that finds nothing a request: what a user
/// does who has many silent peers.
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

/// Echoes what is there; who does not take it at once is closed.
fn echo_now(socket: &TcpStream) -> io::Result<usize> {
    let mut buffer = [0; BUFFER];
    let length = socket.try_read(&mut buffer)?;
    match socket.try_write(&buffer[..length])? {
        written if written == length => Ok(length),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
