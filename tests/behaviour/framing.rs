//! When the callback runs, and with what.

use std::io::Write;

use pool_manager::{Cause, Config, Framing};

use crate::support::echo;

#[test]
fn drained_answers_a_peer_that_waits() {
    let mut rig = echo(Config::new().framing(Framing::Drained));
    let (mut client, _) = rig.connect();
    client.write_all(b"ping").unwrap();
    assert_eq!(rig.read_exact(&mut client, 4), b"ping");
    assert_eq!(rig.record.requests(), [(Cause::Drained, b"ping".to_vec())]);
}
