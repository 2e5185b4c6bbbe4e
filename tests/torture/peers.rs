//! The other side: peers that talk to the program from a thread that nobody traces, and say what
//! they missed.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use pool_manager::{ConnId, ERROR_SERVER_BUSY, Handle, Socket};

use crate::program::REPEATS;
use crate::scene::{Errand, Scenario, Scene};
use crate::support::plain::Plain;
use crate::support::{pair, unix_pair};

/// After so long without an answer a peer knocks: another connection comes and goes. A kernel that
/// said there was nothing to accept when there was says so again only then.
const KNOCK: Duration = Duration::from_millis(300);

/// How long peers wait for the loop to be where the scenario wants it. A fault may keep it from
/// getting there.
const MOMENT: Duration = Duration::from_millis(200);

/// What those say who will be refused; it comes back if there is a place for them, as there is
/// once the one before them was cut off.
const LET_ME_IN: &[u8] = b"let me in";

/// All peers of a scenario.
pub(crate) struct Peers<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) handle: Handle,
    pub(crate) errands: Sender<Errand>,
    pub(crate) opened: Receiver<ConnId>,
}

/// One peer. The first thing that goes wrong is remembered, and ends it.
pub(crate) struct Peer<'a> {
    scene: &'a Scene,
    name: &'static str,
    stream: Option<TcpStream>,
    missed: Option<String>,
    /// When it last sent or heard something.
    moved: Instant,
    /// It was silent for so long, while another waited, that it may be closed for that.
    late: bool,
}

impl Peers<'_> {
    /// Plays the scenario; what peers missed.
    pub(crate) fn play(self) -> Vec<String> {
        let missed = match self.scene.scenario {
            Scenario::Tcp | Scenario::Unix => self.echo(),
            Scenario::Blocked => self.blocked(),
            Scenario::Busy => self.busy(),
            Scenario::Handle => self.handle(),
            Scenario::Restart => self.restart(),
        };
        self.scene.tell(|news| news.done = true);
        // It may be asleep. Stopping already is as good.
        let _ = self.handle.stop();
        missed
    }

    fn echo(&self) -> Vec<String> {
        let mut missed = Vec::new();
        for name in ["first", "second"] {
            let (mut polite, mut abrupt) = (self.connect(name), self.connect("abrupt"));
            polite.exchange(b"hello");
            abrupt.exchange(b"hi");
            polite.exchange(b"hello again");
            missed.extend(abrupt.missed());
            polite.finish(b"the end");
            missed.extend(polite.missed());
        }
        missed
    }

    fn blocked(&self) -> Vec<String> {
        let mut missed = Vec::new();
        for (served, name) in ["first", "second"].into_iter().enumerate() {
            let mut slow = self.connect(name);
            slow.say(b"word");
            self.scene.wait(MOMENT, |news| {
                let served = served as u64;
                news.stats.requests_total() > served || news.stats.closed_total() > served
            });
            slow.hear(&b"word".repeat(REPEATS));
            slow.half_close();
            slow.hear_end(b"");
            missed.extend(slow.missed());
        }
        missed
    }

    fn busy(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let mut holder = self.connect("holder");
        holder.exchange(b"mine");
        for name in ["second", "third"] {
            let mut refused = self.connect(name);
            refused.say(LET_ME_IN);
            if holder.missed.is_none() {
                refused.hear_end(ERROR_SERVER_BUSY.as_bytes());
            }
            missed.extend(refused.missed());
        }
        holder.finish(b"yours");
        missed.extend(holder.missed());
        let deadline = self.scene.patient_until();
        loop {
            // The place may not be free yet if the one who left was not heard of.
            let mut next = self.connect("next");
            next.finish(b"hello");
            let Some(because) = next.missed() else { break };
            if Instant::now() >= deadline || !because.contains(ERROR_SERVER_BUSY) {
                missed.push(because);
                break;
            }
        }
        missed
    }

    fn handle(&self) -> Vec<String> {
        let (tcp, unix, boxed, own) = (pair(), unix_pair(), unix_pair(), unix_pair());
        let put = |socket| self.handle.put(socket).err().map(|error| error.to_string());
        let mut missed = Vec::new();
        let mut peers = [("tcp", tcp.0), ("unix", unix.0), ("boxed", boxed.0), ("own", own.0)]
            .map(|(name, stream)| self.peer(name, stream));
        peers[0].missed = put(Socket::from(tcp.1));
        self.errands.send(Errand::Put(unix.1.into())).expect("the loop is there");
        peers[2].missed = put(Socket::boxed(Plain(boxed.1)));
        self.errands.send(Errand::PutByHandle(own.1.into())).expect("the loop is there");
        // The loop looks for errands after each turn; this waits for one.
        let _ = self.handle.stats();
        for peer in &mut peers {
            peer.exchange(b"hello");
        }
        for peer in peers {
            missed.extend(self.command(peer));
        }
        missed
    }

    /// One more connection, whose id is known, and what a handle can do to it.
    fn command(&self, mut other: Peer<'_>) -> Option<String> {
        self.opened.try_iter().for_each(drop);
        let (client, ours) = pair();
        let mut peer = self.peer("commanded", client);
        peer.missed = self.handle.put(ours).err().map(|error| error.to_string());
        peer.exchange(b"hello");
        if let (None, Some(id)) = (&peer.missed, self.opened.try_iter().last()) {
            let _ = self.handle.send(id, b"pushed".to_vec());
            peer.hear(b"pushed");
            let _ = self.handle.pause(id);
            peer.say(b"held");
            let _ = self.handle.resume(id);
            peer.hear(b"held");
            let _ = self.handle.close(id);
            peer.hear_end(b"");
        }
        other.finish(b"bye");
        other.missed().or(peer.missed())
    }

    fn restart(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let life = self.scene.tell(|news| news.lives);
        let (mut idle, mut midway) = (self.connect("idle"), self.connect("midway"));
        idle.exchange_line("hello");
        midway.exchange_line("hello");
        midway.say(b"half a ");
        self.scene.wait(MOMENT, |news| news.stats.bytes_in >= 19 || news.stats.closed_total() > 0);
        let _ = self.handle.stop();
        idle.hear_end(b"");
        midway.say(b"line\n");
        midway.hear_end(b"half a line");
        // Gone, or the stop would wait for them to take their last words.
        missed.extend([idle, midway].into_iter().filter_map(Peer::missed));
        self.scene.wait(self.scene.patience, |news| news.lives > life);
        let mut late = self.connect("late");
        late.exchange_line("hello again");
        late.half_close();
        late.hear_end(b"");
        missed.extend(late.missed());
        missed
    }

    fn connect(&self, name: &'static str) -> Peer<'_> {
        Peer::connect(self.scene, name)
    }

    fn peer(&self, name: &'static str, stream: TcpStream) -> Peer<'_> {
        Peer::new(self.scene, name, Ok(stream))
    }
}

/// Until the program listens: it may be about to listen again.
fn connect(scene: &Scene) -> io::Result<TcpStream> {
    let deadline = scene.patient_until();
    loop {
        let connected = match scene.scenario {
            Scenario::Unix => UnixStream::connect(&scene.path).map(OwnedFd::from),
            _ => {
                TcpStream::connect(scene.addr().ok_or(ErrorKind::NotConnected)?).map(OwnedFd::from)
            }
        };
        match connected {
            Ok(stream) => {
                let stream = TcpStream::from(stream);
                if scene.scenario == Scenario::Blocked {
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
    pub(crate) fn connect(scene: &'a Scene, name: &'static str) -> Self {
        Self::new(scene, name, connect(scene))
    }

    fn new(scene: &'a Scene, name: &'static str, stream: io::Result<TcpStream>) -> Self {
        let ready = |stream: TcpStream| stream.set_read_timeout(Some(KNOCK)).map(|()| stream);
        let (stream, missed) = match stream.and_then(ready) {
            Ok(stream) => (Some(stream), None),
            Err(error) => (None, Some(format!("{name}: connecting: {error}"))),
        };
        Self { scene, name, stream, missed, moved: Instant::now(), late: false }
    }

    /// What it missed and had a right to.
    pub(crate) fn missed(self) -> Option<String> {
        self.missed.filter(|_| !self.late)
    }

    pub(crate) fn exchange(&mut self, request: &[u8]) {
        self.say(request);
        self.hear(request);
    }

    fn exchange_line(&mut self, line: &str) {
        self.say(format!("{line}\n").as_bytes());
        self.hear(line.as_bytes());
    }

    /// A last request, and the end of file behind its reply.
    pub(crate) fn finish(&mut self, request: &[u8]) {
        self.say(request);
        self.half_close();
        self.hear_end(request);
    }

    fn say(&mut self, request: &[u8]) {
        self.late |= self.moved.elapsed() * 5 >= self.scene.deadline * 4;
        self.moved = Instant::now();
        let said = self.stream.as_mut().map(|stream| stream.write_all(request));
        if let Some(Err(error)) = said {
            self.miss(&format!("sending: {error}"));
        }
    }

    fn half_close(&mut self) {
        let closed = self.stream.as_mut().map(|stream| stream.shutdown(Shutdown::Write));
        if let Some(Err(error)) = closed {
            self.miss(&format!("closing: {error}"));
        }
    }

    /// Waits for exactly this.
    fn hear(&mut self, reply: &[u8]) {
        let mut heard = 0;
        while self.missed.is_none() && heard < reply.len() {
            match self.some(&reply[heard..]) {
                Ok(0) => self.miss(&format!("end of file after {heard} of {} bytes", reply.len())),
                Ok(count) => heard += count,
                Err(error) => self.miss(&format!("{error} after {heard} of {} bytes", reply.len())),
            }
        }
    }

    /// Waits for this and the end of file.
    fn hear_end(&mut self, reply: &[u8]) {
        self.hear(reply);
        if self.missed.is_none() {
            match self.some(&[]) {
                Ok(_) => {}
                Err(error) => self.miss(&format!("{error} instead of the end of file")),
            }
        }
    }

    /// The next bytes, which must be the first of `expected`: a fault may cut a reply short, but
    /// never change it.
    fn some(&mut self, expected: &[u8]) -> io::Result<usize> {
        let deadline = self.scene.patient_until();
        let mut into = [0; 16 << 10];
        let stream = self.stream.as_mut().ok_or(ErrorKind::NotConnected)?;
        let mut knocked = false;
        loop {
            let room = into.len().min(expected.len().max(64));
            match stream.read(&mut into[..room]) {
                Ok(count) => {
                    self.moved = Instant::now();
                    let got = &into[..count];
                    let other = [ERROR_SERVER_BUSY.as_bytes(), LET_ME_IN];
                    if other.contains(&got) && !expected.starts_with(got) {
                        return Err(io::Error::other(got.escape_ascii().to_string()));
                    }
                    assert!(expected.starts_with(got), "{}: \"{}\"", self.name, got.escape_ascii());
                    return Ok(count);
                }
                // A machine that is suspended interrupts a read that has a timeout (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    if !std::mem::replace(&mut knocked, true)
                        && self.scene.scenario != Scenario::Handle
                    {
                        drop(connect(self.scene));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn miss(&mut self, what: &str) {
        self.missed = Some(format!("{}: {what}", self.name));
        self.stream = None;
    }
}
