//! pool-manager: the default configuration, with deadlines and a framing.

use std::io::{self, Write};
use std::net::TcpListener;

use pool_manager::{Config, Conn, Framing, Handler, Manager};

use super::{Mode, Service};

pub(super) fn serve(listener: TcpListener, service: Service) -> io::Result<()> {
    let config = Config::new().clients_deadline(service.deadline);
    match service.mode {
        Mode::Echo | Mode::Idle => run(config.framing(Framing::Drained), listener, echo),
        Mode::Lines => run(config.framing(Framing::Delimited(b'\n')), listener, line),
    }
}

fn echo(conn: &mut Conn<'_>, body: &[u8]) -> io::Result<()> {
    conn.write_all(body)
}

fn line(conn: &mut Conn<'_>, body: &[u8]) -> io::Result<()> {
    conn.write_all(body)?;
    conn.write_all(b"\n")
}

fn run(config: Config, listener: TcpListener, handler: impl Handler) -> io::Result<()> {
    let mut manager = Manager::with_handler(config, handler)?;
    manager.start()?;
    manager.listen_on(listener)?;
    manager.run()?;
    Ok(())
}
