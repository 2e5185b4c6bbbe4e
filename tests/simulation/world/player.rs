//! Player: a handler that does everything a handler may do, and some things it should not.

use std::io;
use std::time::Duration;

use pool_manager::sim::Rng;
use pool_manager::{Cause, CloseReason, Closed, Commands, Conn, ConnId, Handler, Socket};

use super::model::SENDS;
use super::{PLANNED, Shared, draw};

pub(crate) struct Player {
    pub(crate) world: Shared,
    pub(crate) rng: Rng,
    /// For the hooks that are not about a connection. Most seeds have none, so that those that
    /// once failed stay what they were.
    pub(crate) other: Option<Rng>,
    /// For connections that are asked for; most seeds have none, for the same reason.
    pub(crate) calls: Option<Rng>,
}

/// What a callback that wants to be a panic returns.
type Played = Option<io::Result<()>>;

fn or_panic(played: Played) -> io::Result<()> {
    played.unwrap_or_else(|| std::panic::panic_any(PLANNED))
}

fn number(conn: &Conn<'_>) -> usize {
    match conn.socket() {
        Socket::Sim(stream) => stream.connection(),
        _ => usize::MAX,
    }
}

impl Handler for Player {
    type Session = ();

    fn wrap(&mut self, socket: Socket) -> io::Result<Socket> {
        let Socket::Sim(stream) = &socket else { return Ok(socket) };
        let wild = self.world.model.borrow().wild;
        let rng = if wild { self.rng.below(100) } else { 2 };
        self.world.model.borrow_mut().accepted(stream.connection(), rng > 1);
        match rng {
            0 => Err(io::ErrorKind::InvalidData.into()),
            1 => {
                self.world.count_panic("a panic in accepted");
                Ok(socket)
            }
            _ => Ok(socket),
        }
    }

    fn opened(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        let (id, key) = (conn.id(), conn.key());
        self.world.model.borrow_mut().opened(id, number(conn), key, &self.world.sim);
        let greeting = if self.rng.permille(100) { &b"welcome"[..] } else { b"" };
        or_panic(self.play(conn, greeting, "a panic in opened", 400))
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        let bytes = (conn.bytes_in(), conn.bytes_out());
        {
            let mut model = self.world.model.borrow_mut();
            model.depth += 1;
            if model.depth > 1 {
                model.complain("a callback within a callback");
            }
            let (id, cause) = (conn.id(), conn.cause());
            model.request(id, number(conn), cause, bytes, body, &self.world.sim);
        }
        let reply = match self.rng.below(40) {
            _ if !self.world.model.borrow().wild => body.to_vec(),
            0..3 => body.repeat(8),
            3 => vec![b'x'; self.rng.below(4_000)],
            4 => Vec::new(),
            _ => body.to_vec(),
        };
        let played = self.play(conn, &reply, "a panic in a callback", 60);
        self.world.model.borrow_mut().depth -= 1;
        or_panic(played)
    }

    fn blocked(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        if conn.cause() != Cause::Blocked {
            self.world.model.borrow_mut().complain("blocked for another cause");
        }
        self.world.model.borrow_mut().blocked(conn.id());
        // In few seeds more than that, so that those that once failed stay what they were.
        let Some(rng) = self.calls.as_mut() else { return Ok(()) };
        let wild = self.world.model.borrow().wild;
        let more = vec![b'b'; if wild && rng.permille(200) { 1 + rng.below(200) } else { 0 }];
        // Most do nothing else; of those that write more panic, as what they wrote is taken back then.
        let calm = if more.is_empty() { 60 } else { 12 };
        or_panic(self.play(conn, &more, "a panic in blocked", calm))
    }

    fn flushed(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        if conn.cause() != Cause::Flushed {
            self.world.model.borrow_mut().complain("flushed for another cause");
        }
        self.world.model.borrow_mut().flushed(conn.id());
        or_panic(self.play(conn, b"", "a panic in flushed", 60))
    }

    fn tick(&mut self, commands: &mut Commands) {
        self.world.model.borrow_mut().ticked(self.world.sim.counters().waited);
        if !self.world.model.borrow().wild {
            return;
        }
        self.call(commands);
        match self.rng.below(20) {
            0 => self.put(commands),
            1..4 => self.command(commands),
            4 => self.world.count_panic("a panic in tick"),
            _ => {}
        }
    }

    fn closed(&mut self, end: &Closed, (): (), commands: &mut Commands) {
        self.world.model.borrow_mut().closed(end, &self.world.sim);
        if !self.world.model.borrow().wild {
            return;
        }
        self.call(commands);
        match self.rng.below(100) {
            0 => self.put(commands),
            1 => self.world.count_panic("a panic in closed"),
            _ => {}
        }
    }

    fn undelivered(&mut self, id: ConnId, bytes: Vec<u8>, _desk: &mut Commands) {
        self.world.model.borrow_mut().undelivered(id, &bytes);
        if self.world.model.borrow().wild && self.other(100) == Some(0) {
            self.world.count_panic("a panic in undelivered");
        }
    }

    fn turn_ended(&mut self, commands: &mut Commands) {
        self.world.model.borrow_mut().told_turned();
        if !self.world.model.borrow().wild {
            return;
        }
        match self.other(200) {
            Some(0) => self.world.count_panic("a panic in turn_ended"),
            Some(1..20) => {
                self.command(commands);
                if commands.queued() > 0 {
                    self.world.mark("a command at the end of a turn");
                }
            }
            _ => {}
        }
    }
}

impl Player {
    fn other(&mut self, max: usize) -> Option<usize> {
        self.other.as_mut().map(|rng| rng.below(max))
    }

    /// Replies, and once in `calm` times does something else.
    fn play(
        &mut self,
        conn: &mut Conn<'_>,
        reply: &[u8],
        panicked: &'static str,
        calm: usize,
    ) -> Played {
        let id = conn.id();
        let mut written = Ok(());
        if !reply.is_empty() {
            written = io::Write::write_all(conn, reply);
            let mut model = self.world.model.borrow_mut();
            match conn.cause() {
                // What is unsent counts as well.
                Cause::Blocked if written.is_err() => model.closing(id, CloseReason::WriteLimit),
                Cause::Blocked => {}
                _ => model.wrote(id, reply.len(), written.is_ok()),
            }
            if written.is_ok() {
                model.replied(id, reply);
            }
        }
        if !self.world.model.borrow().wild {
            return Some(written);
        }
        self.call(conn.commands());
        match self.rng.below(calm) {
            0 => {
                self.world.model.borrow_mut().closing(id, CloseReason::Requested);
                conn.close();
            }
            1 => {
                self.world.model.borrow_mut().closing(id, CloseReason::Aborted);
                conn.abort();
            }
            2 => {
                self.world.model.borrow_mut().hold_back(id);
                conn.pause();
            }
            3 => {
                let mut model = self.world.model.borrow_mut();
                model.taken_back(id, if written.is_ok() { reply.len() } else { 0 });
                let stopping = model.stopping;
                model.closing(id, CloseReason::Panicked);
                model.marks.hit_if("a panic in a callback while stopping", stopping);
                drop(model);
                self.world.count(panicked);
                return None;
            }
            4 => {
                self.world.model.borrow_mut().closing(id, CloseReason::Failed);
                return Some(Err(io::ErrorKind::Other.into()));
            }
            5 => self.world.sleep(Duration::from_micros(self.rng.below(300_000) as u64)),
            6 => {
                let own =
                    Duration::from_millis(self.rng.below(2) as u64 * 7) * self.rng.below(60) as u32;
                if let Some(account) = self.world.model.borrow_mut().account(id) {
                    account.own = own;
                }
                conn.set_idle_deadline(own);
            }
            7..12 => self.command(conn.commands()),
            _ => {}
        }
        Some(written)
    }

    /// Leaves something on the commands.
    fn command(&mut self, commands: &mut Commands) {
        let other = self.world.model.borrow().any_id(&mut self.rng);
        match (self.rng.below(8), other) {
            (0..2, _) => self.put(commands),
            (2, Some(id)) => {
                self.world.mark("close in a callback");
                self.world.model.borrow_mut().closing(id, CloseReason::Requested);
                let _ = commands.close(id);
            }
            (3, Some(id)) => {
                self.world.mark("send in a callback");
                let value = SENDS[0] | self.rng.below(8) as u8;
                let count = 1 + self.rng.below(200);
                let bytes = self.world.model.borrow_mut().send(id, value, count);
                if commands.send(id, bytes).is_err() {
                    self.world.model.borrow_mut().complain("a commands that is full");
                }
            }
            (4, Some(id)) => {
                self.world.model.borrow_mut().pause(id);
                let _ = commands.pause(id);
            }
            (5, Some(id)) => {
                self.world.model.borrow_mut().resume(id, self.world.sim.now());
                let _ = commands.resume(id);
            }
            (6, _) => {
                self.world.mark("set_config in a callback");
                let config = draw::config(&mut self.rng, false);
                let config = self.world.model.borrow_mut().asked_for(config);
                let _ = commands.set_config(config);
            }
            (7, _) if self.rng.permille(300) => {
                self.world.mark("stop in a callback");
                self.world.model.borrow_mut().stopping = true;
                let _ = commands.stop();
            }
            _ => {}
        }
    }

    /// Asks for a connection, now and then.
    fn call(&mut self, commands: &mut Commands) {
        let Some(rng) = self.calls.as_mut() else { return };
        if !rng.permille(40) {
            return;
        }
        let (host, key, options) = self.world.callee(rng);
        let outcome = commands.connect_with(host.addr(), options);
        self.world.mark("connect in a callback");
        self.world.connect_requested(host, key, outcome);
    }

    fn put(&mut self, commands: &mut Commands) {
        let (mut peer, ours) = self.world.sim.pair();
        match commands.put(ours) {
            Ok(()) => {
                self.world.mark("put in a callback");
                self.world.model.borrow_mut().took();
                self.world.model.borrow_mut().expected(peer.connection());
                self.world.newcomers.borrow_mut().push(peer);
            }
            Err(refused) => self.world.refused(refused, &mut peer),
        }
    }
}

/// Somebody's id, for commands: perhaps of one that is gone.
impl super::model::Model {
    pub(crate) fn any_id(&self, rng: &mut Rng) -> Option<ConnId> {
        let max = self.numbers.len();
        self.numbers.keys().nth(rng.below(max)).copied()
    }
}
