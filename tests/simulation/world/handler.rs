//! A handler that does everything that a handler may do, and some things that it should not do.

use std::io;
use std::time::Duration;

use pool_manager::sim::Rng;
use pool_manager::{Cause, CloseReason, Closed, Commands, Conn, ConnId, Handler, Socket};

use super::model::{Delivery, SENDS};
use super::{PLANNED, Shared, random};

pub(crate) struct RandomHandler {
    pub(crate) harness: Shared,
    pub(crate) rng: Rng,
    /// Generator for the hooks that concern no connection. Most seeds have no such generator, so
    /// that recorded failing seeds still take the same steps.
    pub(crate) hook_rng: Option<Rng>,
    /// Generator for connects. Most seeds have no such generator, for the same reason.
    pub(crate) connect_rng: Option<Rng>,
    /// Generator for `finish`, and for connections that stay open after the end of file. Most seeds
    /// have no such generator.
    pub(crate) finish_rng: Option<Rng>,
}

/// The result of a callback, or `None` if the callback must panic.
type CallbackResult = Option<io::Result<()>>;

fn or_panic(result: CallbackResult) -> io::Result<()> {
    result.unwrap_or_else(|| std::panic::panic_any(PLANNED))
}

fn number(conn: &Conn<'_>) -> usize {
    match conn.socket() {
        Socket::Sim(stream) => stream.connection(),
        _ => usize::MAX,
    }
}

impl Handler for RandomHandler {
    type Session = ConnId;

    fn wrap(&mut self, socket: Socket) -> io::Result<Socket> {
        let Socket::Sim(stream) = &socket else { return Ok(socket) };
        let actions_enabled = self.harness.model.borrow().actions_enabled;
        let rng = if actions_enabled { self.rng.below(100) } else { 2 };
        self.harness.model.borrow_mut().wrap_called(stream.connection(), rng > 1);
        match rng {
            0 => Err(io::ErrorKind::InvalidData.into()),
            1 => {
                self.harness.panic_now("a panic in wrap");
                Ok(socket)
            }
            _ => Ok(socket),
        }
    }

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<ConnId> {
        let (id, key) = (conn.id(), conn.key());
        self.harness.model.borrow_mut().opened(id, number(conn), key, &self.harness.sim);
        let greeting = if self.rng.permille(100) { &b"welcome"[..] } else { b"" };
        or_panic(self.act(conn, greeting, "a panic in opened", 400))?;
        if let Some(record) = self.harness.model.borrow_mut().record(id) {
            record.has_session = true;
        }
        Ok(id)
    }

    fn request(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut ConnId,
        body: &[u8],
    ) -> io::Result<()> {
        self.check_session(conn, *session);
        let bytes = (conn.bytes_in(), conn.bytes_out());
        {
            let mut model = self.harness.model.borrow_mut();
            model.depth += 1;
            if model.depth > 1 {
                model.fail("a callback runs within a callback");
            }
            let delivery = Delivery { complete: true, cause: conn.cause(), bytes, body };
            model.delivered(conn.id(), number(conn), &delivery, &self.harness.sim);
        }
        let reply = match self.rng.below(40) {
            _ if !self.harness.model.borrow().actions_enabled => body.to_vec(),
            0..3 => body.repeat(8),
            3 => vec![b'x'; self.rng.below(4_000)],
            4 => Vec::new(),
            _ => body.to_vec(),
        };
        let result = self.act(conn, &reply, "a panic in a callback", 60);
        self.harness.model.borrow_mut().depth -= 1;
        or_panic(result)
    }

    fn incomplete(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut ConnId,
        held: &[u8],
    ) -> io::Result<()> {
        self.check_session(conn, *session);
        let bytes = (conn.bytes_in(), conn.bytes_out());
        let delivery = Delivery { complete: false, cause: conn.cause(), bytes, body: held };
        let mut model = self.harness.model.borrow_mut();
        model.delivered(conn.id(), number(conn), &delivery, &self.harness.sim);
        drop(model);
        let result = self.act(conn, held, "a panic in incomplete", 60);
        if conn.cause() == Cause::Unanswered {
            self.harness.model.borrow_mut().pause_expired(conn.id());
        }
        or_panic(result)
    }

    fn read_closed(&mut self, conn: &mut Conn<'_>, session: &mut ConnId) -> io::Result<()> {
        self.check_session(conn, *session);
        let id = conn.id();
        if conn.cause() != Cause::Eof {
            self.harness.model.borrow_mut().fail("`read_closed` was called with another cause");
        }
        self.harness.model.borrow_mut().read_closed(id, &self.harness.sim);
        let actions_enabled = self.harness.model.borrow().actions_enabled;
        if actions_enabled && self.finish_rng.as_mut().is_some_and(|rng| rng.permille(400)) {
            self.harness.mark("a connection stays open after read_closed");
            return or_panic(self.act(conn, b"late", "a panic in read_closed", 12));
        }
        self.harness.model.borrow_mut().finish(id);
        conn.finish();
        Ok(())
    }

    fn blocked(&mut self, conn: &mut Conn<'_>, session: &mut ConnId) -> io::Result<()> {
        self.check_session(conn, *session);
        if conn.cause() != Cause::Blocked {
            self.harness.model.borrow_mut().fail("`blocked` was called with another cause");
        }
        self.harness.model.borrow_mut().blocked(conn.id());
        // Only a few seeds do more here, so that recorded failing seeds still take the same steps.
        let Some(rng) = self.connect_rng.as_mut() else { return Ok(()) };
        let actions_enabled = self.harness.model.borrow().actions_enabled;
        let more =
            vec![b'b'; if actions_enabled && rng.permille(200) { 1 + rng.below(200) } else { 0 }];
        // If the call writes no bytes here, it rarely performs an action. If it writes bytes, it
        // always performs an action, so that more of these calls panic. A panic must discard the
        // bytes.
        let one_in = if more.is_empty() { 60 } else { 12 };
        or_panic(self.act(conn, &more, "a panic in blocked", one_in))
    }

    fn flushed(&mut self, conn: &mut Conn<'_>, session: &mut ConnId) -> io::Result<()> {
        self.check_session(conn, *session);
        if conn.cause() != Cause::Flushed {
            self.harness.model.borrow_mut().fail("`flushed` was called with another cause");
        }
        self.harness.model.borrow_mut().flushed(conn.id());
        or_panic(self.act(conn, b"", "a panic in flushed", 60))
    }

    fn tick(&mut self, commands: &mut Commands) {
        self.harness.model.borrow_mut().ticked(self.harness.sim.counters().waited);
        if !self.harness.model.borrow().actions_enabled {
            return;
        }
        self.maybe_connect(commands);
        match self.rng.below(20) {
            0 => self.put(commands),
            1..4 => self.command(commands),
            4 => self.harness.panic_now("a panic in tick"),
            _ => {}
        }
    }

    fn closed(&mut self, end: &Closed, session: Option<ConnId>, commands: &mut Commands) {
        self.harness.model.borrow_mut().check_session(end, session);
        self.harness.model.borrow_mut().closed(end, &self.harness.sim);
        if !self.harness.model.borrow().actions_enabled {
            return;
        }
        self.maybe_connect(commands);
        match self.rng.below(100) {
            0 => self.put(commands),
            1 => self.harness.panic_now("a panic in closed"),
            _ => {}
        }
    }

    fn undelivered(&mut self, id: ConnId, bytes: Vec<u8>, _commands: &mut Commands) {
        self.harness.model.borrow_mut().undelivered(id, &bytes);
        if self.harness.model.borrow().actions_enabled && self.draw_for_hook(100) == Some(0) {
            self.harness.panic_now("a panic in undelivered");
        }
    }

    fn notified(&mut self, commands: &mut Commands) {
        if !self.harness.notified.replace(false) {
            self.harness.model.borrow_mut().fail("`notified` without a notification");
        }
        if self.harness.model.borrow().actions_enabled {
            self.maybe_connect(commands);
        }
    }

    fn stopping(&mut self, commands: &mut Commands) {
        self.harness.stopping_calls.set(self.harness.stopping_calls.get() + 1);
        if commands.queued() > 0 {
            self.harness.mark("a command is queued when a stop begins");
        }
    }

    fn turn_ended(&mut self, commands: &mut Commands) {
        self.harness.model.borrow_mut().record_turn_end();
        if !self.harness.model.borrow().actions_enabled {
            return;
        }
        match self.draw_for_hook(200) {
            Some(0) => self.harness.panic_now("a panic in turn_ended"),
            Some(1..20) => {
                self.command(commands);
                if commands.queued() > 0 {
                    self.harness.mark("a command in turn_ended");
                }
            }
            _ => {}
        }
    }
}

impl RandomHandler {
    /// Checks that the session of a callback is the session of its connection.
    fn check_session(&self, conn: &Conn<'_>, session: ConnId) {
        if conn.id() != session {
            self.harness
                .model
                .borrow_mut()
                .fail("a callback got the session of another connection");
        }
    }

    fn draw_for_hook(&mut self, max: usize) -> Option<usize> {
        self.hook_rng.as_mut().map(|rng| rng.below(max))
    }

    /// Writes the reply. Then performs one of several actions or none. Most actions have a
    /// probability of one in `one_in`.
    fn act(
        &mut self,
        conn: &mut Conn<'_>,
        reply: &[u8],
        panicked: &'static str,
        one_in: usize,
    ) -> CallbackResult {
        let id = conn.id();
        let mut written = Ok(());
        if !reply.is_empty() {
            written = io::Write::write_all(conn, reply);
            let mut model = self.harness.model.borrow_mut();
            match conn.cause() {
                // `write_limit` also counts the bytes that are still unsent.
                Cause::Blocked if written.is_err() => model.closing(id, CloseReason::WriteLimit),
                Cause::Blocked => {}
                _ => model.wrote(id, reply.len(), written.is_ok()),
            }
            if written.is_ok() {
                model.replied(id, reply);
            }
        }
        if !self.harness.model.borrow().actions_enabled {
            return Some(written);
        }
        self.maybe_connect(conn.commands());
        match self.rng.below(one_in) {
            0 => {
                self.harness.model.borrow_mut().closing(id, CloseReason::Requested);
                conn.close();
            }
            1 => {
                self.harness.model.borrow_mut().closing(id, CloseReason::Aborted);
                conn.abort();
            }
            2 => {
                let began = self.harness.sim.counters().waited;
                self.harness.model.borrow_mut().pause_by_callback(id, began);
                conn.pause();
            }
            3 => {
                let mut model = self.harness.model.borrow_mut();
                model.reply_discarded(id, if written.is_ok() { reply.len() } else { 0 });
                let stopping = model.stopping;
                model.closing(id, CloseReason::Panicked);
                model.marks.hit_if("a panic in a callback while stopping", stopping);
                drop(model);
                self.harness.count_panic(panicked);
                return None;
            }
            4 => {
                self.harness.model.borrow_mut().closing(id, CloseReason::Failed);
                return Some(Err(io::ErrorKind::Other.into()));
            }
            5 => self.harness.sleep(Duration::from_micros(self.rng.below(300_000) as u64)),
            6 => {
                let own_deadline =
                    Duration::from_millis(self.rng.below(2) as u64 * 7) * self.rng.below(60) as u32;
                if let Some(record) = self.harness.model.borrow_mut().record(id) {
                    record.own_deadline = own_deadline;
                }
                conn.set_idle_deadline((!own_deadline.is_zero()).then_some(own_deadline));
            }
            7..12 => self.command(conn.commands()),
            _ => {}
        }
        self.maybe_finish(conn);
        Some(written)
    }

    /// Finishes the connection in some of the calls. Then writes bytes, which are discarded.
    fn maybe_finish(&mut self, conn: &mut Conn<'_>) {
        if !self.finish_rng.as_mut().is_some_and(|rng| rng.permille(30)) {
            return;
        }
        let id = conn.id();
        self.harness.model.borrow_mut().finish(id);
        conn.finish();
        let written = io::Write::write_all(conn, b"discarded");
        let mut model = self.harness.model.borrow_mut();
        model.wrote(id, 9, written.is_ok());
        model.replied(id, b"discarded");
    }

    /// Queues a random command.
    fn command(&mut self, commands: &mut Commands) {
        let other = self.harness.model.borrow().any_id(&mut self.rng);
        match (self.rng.below(8), other) {
            (0..2, _) => self.put(commands),
            (2, Some(id)) => {
                self.harness.mark("close in a callback");
                self.harness.model.borrow_mut().closing(id, CloseReason::Requested);
                let _ = commands.close(id);
            }
            (3, Some(id)) => {
                self.harness.mark("send in a callback");
                let value = SENDS[0] | self.rng.below(8) as u8;
                let count = 1 + self.rng.below(200);
                let bytes = self.harness.model.borrow_mut().send(id, value, count);
                if commands.send(id, bytes).is_err() {
                    self.harness.model.borrow_mut().fail("the command queue of callbacks is full");
                }
            }
            (4, Some(id)) => {
                let began = self.harness.sim.counters().waited;
                self.harness.model.borrow_mut().pause(id, began);
                let _ = commands.pause(id);
            }
            (5, Some(id)) => {
                self.harness.model.borrow_mut().resume(id, self.harness.sim.now());
                let _ = commands.resume(id);
            }
            (6, _) => {
                self.harness.mark("set_config in a callback");
                let config = random::config(&mut self.rng, false);
                let config = self.harness.model.borrow_mut().config_requested(config);
                let _ = commands.set_config(config);
            }
            (7, _) if self.rng.permille(300) => {
                self.harness.mark("stop in a callback");
                self.harness.model.borrow_mut().stopping = true;
                let _ = commands.stop();
            }
            _ => {}
        }
    }

    /// Requests a connect in some of the calls.
    fn maybe_connect(&mut self, commands: &mut Commands) {
        let Some(rng) = self.connect_rng.as_mut() else { return };
        if !rng.permille(40) {
            return;
        }
        let (host, key, options) = self.harness.random_connect(rng);
        let outcome = commands.connect_with(host.addr(), options);
        self.harness.mark("connect in a callback");
        self.harness.connect_requested(host, key, outcome);
    }

    fn put(&mut self, commands: &mut Commands) {
        let (mut peer, ours) = self.harness.sim.pair();
        match commands.put(ours) {
            Ok(()) => {
                self.harness.mark("put in a callback");
                self.harness.model.borrow_mut().socket_taken();
                self.harness.model.borrow_mut().expected(peer.connection());
                self.harness.new_streams.borrow_mut().push(peer);
            }
            Err(refused) => self.harness.refused(refused, &mut peer),
        }
    }
}

impl super::model::Model {
    /// Returns a random id for a command. Its connection may have ended.
    pub(crate) fn any_id(&self, rng: &mut Rng) -> Option<ConnId> {
        let max = self.numbers.len();
        self.numbers.keys().nth(rng.below(max)).copied()
    }
}
