//! Lockstep: the driver's side of a round. The server asks the driver to connect, send or close.
//! The driver answers when the action is done. By then, bytes that it sent over loopback have
//! arrived.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{ChildStdin, ChildStdout};

use crate::cases::{BATCH, Case, Kind};

/// An action that the server requests from the driver. The request is one byte.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Action {
    Connect = b'c',
    Send = b's',
    Close = b'x',
    End = b'e',
}

/// The counters that a server prints at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    /// Turns before the measured rounds.
    pub(crate) before: u64,
    /// Turns in the measured rounds.
    pub(crate) turns: u64,
    /// Allocations in the measured rounds.
    pub(crate) allocations: u64,
}

struct Driver<'a> {
    case: &'a Case,
    addr: SocketAddr,
    request: Vec<u8>,
    clients: Vec<TcpStream>,
    /// The client that sends first in the next round.
    next: usize,
    /// The number of clients before `next` that have a reply to read.
    unread: usize,
}

/// Acts as the clients of a server until the server ends. Returns its counters.
pub(crate) fn drive(
    case: &Case,
    stdout: ChildStdout,
    mut stdin: ChildStdin,
) -> Result<Report, Box<dyn Error>> {
    let mut lines = BufReader::new(stdout).lines();
    let mut read_line =
        move || lines.next().ok_or("the server ended early")?.map_err(Box::<dyn Error>::from);
    let addr = read_line()?.parse()?;
    let request = case.request();
    let mut driver = Driver { case, addr, request, clients: Vec::new(), next: 0, unread: 0 };
    loop {
        let action = read_line()?;
        match action.bytes().next() {
            Some(b'c') => driver.connect(BATCH.min(case.live - driver.clients.len()))?,
            Some(b's') => driver.send()?,
            Some(b'x') => driver.close()?,
            Some(b'e') => {
                driver.read()?;
                stdin.write_all(b".")?;
                let [before, turns, allocations] = [read_line()?, read_line()?, read_line()?];
                let (before, turns) = (before.parse()?, turns.parse()?);
                return Ok(Report { before, turns, allocations: allocations.parse()? });
            }
            _ => return Err(format!("the server asked for {action:?}").into()),
        }
        stdin.write_all(b".")?;
    }
}

impl Driver<'_> {
    fn connect(&mut self, count: usize) -> Result<(), Box<dyn Error>> {
        for _ in 0..count {
            let client = TcpStream::connect(self.addr)?;
            client.set_nodelay(true)?;
            self.clients.push(client);
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), Box<dyn Error>> {
        if self.case.kind == Kind::Churn {
            self.next = 0;
            self.connect(self.case.active)?;
        }
        self.read()?;
        for _ in 0..self.case.active {
            self.clients[self.next].write_all(&self.request)?;
            self.next = (self.next + 1) % self.clients.len();
        }
        self.unread = self.case.active;
        Ok(())
    }

    /// Reads the replies of the last round and checks every byte.
    fn read(&mut self) -> Result<(), Box<dyn Error>> {
        let mut reply = vec![0; self.request.len()];
        let all = self.clients.len();
        for back in (1..=self.unread).rev() {
            let client = (self.next + all - back) % all;
            self.clients[client].read_exact(&mut reply)?;
            if reply != self.request {
                return Err("a reply differs from its request".into());
            }
        }
        self.unread = 0;
        Ok(())
    }

    fn close(&mut self) -> Result<(), Box<dyn Error>> {
        self.read()?;
        self.clients.clear();
        Ok(())
    }
}
