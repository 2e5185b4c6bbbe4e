//! Lockstep: the driver's side of a round. It connects, sends, reads and closes when the server
//! asks for it, and answers when that is done: what was sent over loopback has arrived by then.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{ChildStdin, ChildStdout};

use crate::cases::{BATCH, Case, Kind};

/// What a server asks for: one byte.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Ask {
    Connect = b'c',
    Send = b's',
    Close = b'x',
    End = b'e',
}

/// What a server tells of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// Turns until its measured rounds.
    pub(crate) before: u64,
    /// Turns in them.
    pub(crate) turns: u64,
    /// Allocations in them.
    pub(crate) allocations: u64,
}

struct Driver<'a> {
    case: &'a Case,
    addr: SocketAddr,
    request: Vec<u8>,
    clients: Vec<TcpStream>,
    /// Who sends first in the next round.
    next: usize,
    /// How many, before `next`, have a reply to read.
    owed: usize,
}

/// Plays the peers of a server to the end, and returns what it told.
pub(crate) fn drive(
    case: &Case,
    asks: ChildStdout,
    mut done: ChildStdin,
) -> Result<Told, Box<dyn Error>> {
    let mut asks = BufReader::new(asks).lines();
    let mut ask =
        move || asks.next().ok_or("the server ended early")?.map_err(Box::<dyn Error>::from);
    let addr = ask()?.parse()?;
    let request = case.request();
    let mut driver = Driver { case, addr, request, clients: Vec::new(), next: 0, owed: 0 };
    loop {
        let asked = ask()?;
        match asked.bytes().next() {
            Some(b'c') => driver.connect(BATCH.min(case.live - driver.clients.len()))?,
            Some(b's') => driver.send()?,
            Some(b'x') => driver.close()?,
            Some(b'e') => {
                driver.read()?;
                done.write_all(b".")?;
                let [before, turns, allocations] = [ask()?, ask()?, ask()?];
                let (before, turns) = (before.parse()?, turns.parse()?);
                return Ok(Told { before, turns, allocations: allocations.parse()? });
            }
            _ => return Err(format!("the server asks for {asked:?}").into()),
        }
        done.write_all(b".")?;
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
        self.owed = self.case.active;
        Ok(())
    }

    /// Reads the replies of the last round and checks every byte.
    fn read(&mut self) -> Result<(), Box<dyn Error>> {
        let mut reply = vec![0; self.request.len()];
        let all = self.clients.len();
        for back in (1..=self.owed).rev() {
            let client = (self.next + all - back) % all;
            self.clients[client].read_exact(&mut reply)?;
            if reply != self.request {
                return Err("a reply is not what was sent".into());
            }
        }
        self.owed = 0;
        Ok(())
    }

    fn close(&mut self) -> Result<(), Box<dyn Error>> {
        self.read()?;
        self.clients.clear();
        Ok(())
    }
}
