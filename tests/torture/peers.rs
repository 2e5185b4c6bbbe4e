//! The peers of the program. They run on a thread that strace does not trace, and report their
//! failures.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use pool_manager::{ConnId, ERROR_SERVER_BUSY, Handle, Socket};

use crate::program::REPEATS;
use crate::shared::{PutRequest, Scenario, Shared};
use crate::support::plain::Plain;
use crate::support::{pair, unix_pair};

/// Time without a reply after which a peer opens and closes another connection. After a false
/// `EAGAIN` from `accept4`, the kernel reports the listener again only when another connection
/// arrives.
const RECONNECT_AFTER: Duration = Duration::from_millis(300);

/// Maximum time that a peer waits for the loop to reach the next state of the scenario. A fault may
/// prevent that state.
const STATE_TIMEOUT: Duration = Duration::from_millis(200);

/// Input of peers that expect to be refused. The loop echoes this input if the worker is free. The
/// worker may be free because the fault has closed the connection that held it.
const REFUSED_INPUT: &[u8] = b"let me in";

/// The peers of a scenario.
pub(crate) struct Peers<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) handle: Handle,
    pub(crate) put_requests: Sender<PutRequest>,
    pub(crate) opened: Receiver<ConnId>,
}

/// One peer. When an operation of the peer fails, the peer stores this failure and closes its
/// stream.
pub(crate) struct Peer<'a> {
    shared: &'a Shared,
    name: &'static str,
    stream: Option<TcpStream>,
    failure: Option<String>,
    /// The time of its last write or read.
    last_activity: Instant,
    /// The peer was silent for most of the deadline, so its connection may have expired.
    may_be_expired: bool,
}

impl Peers<'_> {
    /// Plays the scenario, and returns the failures of the peers.
    pub(crate) fn play(self) -> Vec<String> {
        let failures = match self.shared.scenario {
            Scenario::Tcp | Scenario::Unix => self.echo(),
            Scenario::Blocked => self.blocked(),
            Scenario::Busy => self.busy(),
            Scenario::Handle => self.handle(),
            Scenario::Restart => self.restart(),
        };
        self.shared.with_state(|state| state.done = true);
        // Wake the loop, which may be waiting. An error means that it is already stopping.
        let _ = self.handle.stop();
        failures
    }

    fn echo(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for name in ["first", "second"] {
            let (mut polite, mut abrupt) = (self.connect(name), self.connect("abrupt"));
            polite.exchange(b"hello");
            abrupt.exchange(b"hi");
            polite.exchange(b"hello again");
            failures.extend(abrupt.failure());
            polite.finish(b"the end");
            failures.extend(polite.failure());
        }
        failures
    }

    fn blocked(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for (served, name) in ["first", "second"].into_iter().enumerate() {
            let mut slow = self.connect(name);
            slow.send(b"word");
            self.shared.wait(STATE_TIMEOUT, |state| {
                let served = served as u64;
                state.stats.requests_total() > served || state.stats.closed_total() > served
            });
            slow.receive(&b"word".repeat(REPEATS));
            slow.half_close();
            slow.receive_end(b"");
            failures.extend(slow.failure());
        }
        failures
    }

    fn busy(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut holder = self.connect("holder");
        holder.exchange(b"mine");
        for name in ["second", "third"] {
            let mut refused = self.connect(name);
            refused.send(REFUSED_INPUT);
            if holder.failure.is_none() {
                refused.receive_end(ERROR_SERVER_BUSY.as_bytes());
            }
            failures.extend(refused.failure());
        }
        holder.finish(b"yours");
        failures.extend(holder.failure());
        let deadline = self.shared.time_limit();
        loop {
            // The worker is still taken if the loop has not noticed that the previous peer left.
            let mut next = self.connect("next");
            next.finish(b"hello");
            let Some(failure) = next.failure() else { break };
            if Instant::now() >= deadline || !failure.contains(ERROR_SERVER_BUSY) {
                failures.push(failure);
                break;
            }
        }
        failures
    }

    fn handle(&self) -> Vec<String> {
        let (tcp, unix, boxed, by_handle) = (pair(), unix_pair(), unix_pair(), unix_pair());
        let put = |socket| self.handle.put(socket).err().map(|error| error.to_string());
        let mut failures = Vec::new();
        let mut peers =
            [("tcp", tcp.0), ("unix", unix.0), ("boxed", boxed.0), ("handle", by_handle.0)]
                .map(|(name, stream)| self.peer(name, stream));
        peers[0].failure = put(Socket::from(tcp.1));
        self.put_requests.send(PutRequest::Put(unix.1.into())).expect("the loop runs");
        peers[2].failure = put(Socket::boxed(Plain(boxed.1)));
        self.put_requests.send(PutRequest::PutByHandle(by_handle.1.into())).expect("the loop runs");
        // The program takes put requests after each turn. This call waits for a turn.
        let _ = self.handle.stats();
        for peer in &mut peers {
            peer.exchange(b"hello");
        }
        for peer in peers {
            failures.extend(self.command(peer));
        }
        failures
    }

    /// Puts one more connection by the handle. Then sends to it, pauses it, resumes it and closes
    /// it by commands. The channel `opened` reports the id of the connection.
    fn command(&self, mut other: Peer<'_>) -> Option<String> {
        self.opened.try_iter().for_each(drop);
        let (client, ours) = pair();
        let mut peer = self.peer("commanded", client);
        peer.failure = self.handle.put(ours).err().map(|error| error.to_string());
        peer.exchange(b"hello");
        if let (None, Some(id)) = (&peer.failure, self.opened.try_iter().last()) {
            let _ = self.handle.send(id, b"pushed".to_vec());
            peer.receive(b"pushed");
            let _ = self.handle.pause(id);
            peer.send(b"held");
            let _ = self.handle.resume(id);
            peer.receive(b"held");
            let _ = self.handle.close(id);
            peer.receive_end(b"");
        }
        other.finish(b"bye");
        other.failure().or(peer.failure())
    }

    fn restart(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let starts_before = self.shared.with_state(|state| state.starts);
        let (mut idle, mut midway) = (self.connect("idle"), self.connect("midway"));
        idle.exchange_line("hello");
        midway.exchange_line("hello");
        midway.send(b"half a ");
        self.shared.wait(STATE_TIMEOUT, |state| {
            state.stats.bytes_in >= 19 || state.stats.closed_total() > 0
        });
        let _ = self.handle.stop();
        idle.receive_end(b"");
        midway.send(b"line\n");
        midway.receive_end(b"half a line");
        // Close both streams. Otherwise the stop would wait for their lingering connections.
        failures.extend([idle, midway].into_iter().filter_map(Peer::failure));
        self.shared.wait(self.shared.timeout, |state| state.starts > starts_before);
        let mut late = self.connect("late");
        late.exchange_line("hello again");
        late.half_close();
        late.receive_end(b"");
        failures.extend(late.failure());
        failures
    }

    fn connect(&self, name: &'static str) -> Peer<'_> {
        Peer::connect(self.shared, name)
    }

    fn peer(&self, name: &'static str, stream: TcpStream) -> Peer<'_> {
        Peer::new(self.shared, name, Ok(stream))
    }
}

/// Connects to the program. Retries until the time limit, since the program may be about to listen
/// again.
fn connect(shared: &Shared) -> io::Result<TcpStream> {
    let deadline = shared.time_limit();
    loop {
        let connected = match shared.scenario {
            Scenario::Unix => UnixStream::connect(&shared.path).map(OwnedFd::from),
            _ => {
                TcpStream::connect(shared.addr().ok_or(ErrorKind::NotConnected)?).map(OwnedFd::from)
            }
        };
        match connected {
            Ok(stream) => {
                let stream = TcpStream::from(stream);
                if shared.scenario == Scenario::Blocked {
                    socket2::SockRef::from(&stream).set_recv_buffer_size(32 << 10)?;
                }
                return Ok(stream);
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::yield_now(),
        }
    }
}

impl<'a> Peer<'a> {
    pub(crate) fn connect(shared: &'a Shared, name: &'static str) -> Self {
        Self::new(shared, name, connect(shared))
    }

    fn new(shared: &'a Shared, name: &'static str, stream: io::Result<TcpStream>) -> Self {
        let ready =
            |stream: TcpStream| stream.set_read_timeout(Some(RECONNECT_AFTER)).map(|()| stream);
        let (stream, failure) = match stream.and_then(ready) {
            Ok(stream) => (Some(stream), None),
            Err(error) => (None, Some(format!("{name}: connecting: {error}"))),
        };
        Self { shared, name, stream, failure, last_activity: Instant::now(), may_be_expired: false }
    }

    /// Returns the failure, unless the connection may have expired.
    pub(crate) fn failure(self) -> Option<String> {
        self.failure.filter(|_| !self.may_be_expired)
    }

    pub(crate) fn exchange(&mut self, request: &[u8]) {
        self.send(request);
        self.receive(request);
    }

    fn exchange_line(&mut self, line: &str) {
        self.send(format!("{line}\n").as_bytes());
        self.receive(line.as_bytes());
    }

    /// Sends a last request, closes the sending side, and waits for the reply and the end of file.
    pub(crate) fn finish(&mut self, request: &[u8]) {
        self.send(request);
        self.half_close();
        self.receive_end(request);
    }

    fn send(&mut self, request: &[u8]) {
        self.may_be_expired |= self.last_activity.elapsed() * 5 >= self.shared.deadline * 4;
        self.last_activity = Instant::now();
        let result = self.stream.as_mut().map(|stream| stream.write_all(request));
        if let Some(Err(error)) = result {
            self.fail(&format!("sending: {error}"));
        }
    }

    fn half_close(&mut self) {
        let closed = self.stream.as_mut().map(|stream| stream.shutdown(Shutdown::Write));
        if let Some(Err(error)) = closed {
            self.fail(&format!("closing: {error}"));
        }
    }

    /// Waits for exactly `reply`.
    fn receive(&mut self, reply: &[u8]) {
        let mut received = 0;
        while self.failure.is_none() && received < reply.len() {
            match self.read_some(&reply[received..]) {
                Ok(0) => {
                    self.fail(&format!("end of file after {received} of {} bytes", reply.len()));
                }
                Ok(count) => received += count,
                Err(error) => {
                    self.fail(&format!("{error} after {received} of {} bytes", reply.len()));
                }
            }
        }
    }

    /// Waits for `reply` and the end of file.
    fn receive_end(&mut self, reply: &[u8]) {
        self.receive(reply);
        if self.failure.is_none() {
            match self.read_some(&[]) {
                Ok(_) => {}
                Err(error) => self.fail(&format!("{error} instead of the end of file")),
            }
        }
    }

    /// Reads the next bytes, which must be a prefix of `expected`. A fault may cut a reply short,
    /// but must not change it.
    fn read_some(&mut self, expected: &[u8]) -> io::Result<usize> {
        let deadline = self.shared.time_limit();
        let mut into = [0; 16 << 10];
        let stream = self.stream.as_mut().ok_or(ErrorKind::NotConnected)?;
        let mut reconnected = false;
        loop {
            let room = into.len().min(expected.len().max(64));
            match stream.read(&mut into[..room]) {
                Ok(count) => {
                    self.last_activity = Instant::now();
                    let got = &into[..count];
                    let other = [ERROR_SERVER_BUSY.as_bytes(), REFUSED_INPUT];
                    if other.contains(&got) && !expected.starts_with(got) {
                        return Err(io::Error::other(got.escape_ascii().to_string()));
                    }
                    assert!(expected.starts_with(got), "{}: \"{}\"", self.name, got.escape_ascii());
                    return Ok(count);
                }
                // Suspending the machine interrupts a read that has a timeout (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    if !std::mem::replace(&mut reconnected, true)
                        && self.shared.scenario != Scenario::Handle
                    {
                        drop(connect(self.shared));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn fail(&mut self, what: &str) {
        self.failure = Some(format!("{}: {what}", self.name));
        self.stream = None;
    }
}
