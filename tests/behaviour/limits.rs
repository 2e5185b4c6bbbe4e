//! Limits on workers, buffers and unsent output, and changes of the configuration at run time.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use pool_manager::{Cause, CloseReason, Config, ConfigError, Conn, Error, Framing, Manager};

use crate::support::{echo, pair, reset, rig};

const LATER: Duration = Duration::from_secs(600);

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LATER).reap_interval(LATER)
}

fn filled(buffer_size: usize) -> Config {
    Config::new().buffer_size(buffer_size).clients_deadline(LATER)
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    let mut rig = echo(lines());
    let mut clients: Vec<TcpStream> = (0..50).map(|_| rig.connect().0).collect();
    for client in &mut clients {
        client.write_all(b"line\n").unwrap();
    }
    rig.requests(50);
    let stats = rig.manager.stats();
    assert_eq!(
        (stats.live, stats.buffers_allocated, stats.spare),
        (50, 1, 0),
        "the hot buffer serves all"
    );

    for client in &mut clients[..20] {
        client.write_all(b"part").unwrap();
    }
    rig.bytes_in(50 * 5 + 20 * 4);
    let stats = rig.manager.stats();
    assert_eq!(
        (stats.buffers_allocated, stats.spare),
        (21, 0),
        "one per connection that holds bytes"
    );

    for client in &mut clients[..20] {
        client.write_all(b"ed\n").unwrap();
    }
    rig.requests(70);
    let stats = rig.manager.stats();
    assert_eq!((stats.buffers_allocated, stats.spare), (21, 20), "the buffers are returned");

    for client in &mut clients[20..40] {
        client.write_all(b"part").unwrap();
    }
    rig.bytes_in(50 * 5 + 40 * 4 + 20 * 3);
    let stats = rig.manager.stats();
    assert_eq!((stats.buffers_allocated, stats.spare), (21, 0), "other connections use them");
}

#[test]
fn a_buffer_is_returned_however_its_connection_ends() {
    let mut rig = echo(lines());
    let held = |rig: &mut crate::support::Rig<_>, client: &mut TcpStream| {
        let bytes = rig.manager.stats().bytes_in;
        client.write_all(b"part").unwrap();
        rig.bytes_in(bytes + 4);
        assert_eq!(rig.manager.stats().spare, 0);
    };
    let (mut client, _) = rig.connect();
    held(&mut rig, &mut client);
    reset(client);
    rig.until(|rig| rig.record.closed_with(CloseReason::Reset));
    assert_eq!(rig.manager.stats().spare, 1);

    let (mut client, _) = rig.connect();
    held(&mut rig, &mut client);
    drop(client);
    rig.until(|rig| rig.record.closed_with(CloseReason::Eof));
    assert_eq!((rig.manager.stats().spare, rig.manager.stats().buffers_allocated), (1, 2));
}

#[test]
fn min_workers_are_warm_from_the_start() {
    let mut rig = echo(lines().min_workers(3));
    let stats = rig.manager.stats();
    assert_eq!((stats.spare, stats.buffers_allocated, stats.live), (3, 4, 0));
    let mut clients: Vec<TcpStream> = (0..3).map(|_| rig.connect().0).collect();
    for (busy, client) in clients.iter_mut().enumerate() {
        client.write_all(b"part").unwrap();
        rig.bytes_in(4 * (busy as u64 + 1));
        assert_eq!(rig.manager.stats().spare, 2 - busy as u64);
    }
    for client in &mut clients {
        client.write_all(b"ed\n").unwrap();
    }
    rig.requests(3);
    let stats = rig.manager.stats();
    assert_eq!((stats.spare, stats.buffers_allocated), (3, 4), "no buffer was allocated for them");
}

#[test]
fn a_configuration_set_before_the_start_is_in_effect_after_it() {
    let mut manager = Manager::new(lines(), |_, _| Ok(())).unwrap();
    manager.set_config(lines().min_workers(2).max_workers(2)).unwrap();
    assert_eq!(manager.stats().spare, 0, "no buffer is warm before the start");
    manager.start().unwrap();
    assert_eq!(manager.stats().spare, 2);
    let puts = [(); 3].map(|()| manager.put(pair().1).is_ok());
    assert_eq!(puts, [true, true, false]);
}

#[test]
fn min_workers_may_be_raised_and_lowered() {
    let interval = Duration::from_millis(30);
    let mut rig = echo(lines().min_workers(2));
    rig.manager.set_config(lines().min_workers(5)).unwrap();
    assert_eq!(rig.manager.stats().spare, 5, "warm at once");
    assert_eq!(rig.manager.stats().buffers_allocated, 6);
    rig.manager.set_config(lines().min_workers(1).reap_interval(interval)).unwrap();
    rig.until(|rig| rig.manager.stats().spare == 1);
    rig.pass(3 * interval);
    assert_eq!(rig.manager.stats().spare, 1);
    assert_eq!(rig.manager.stats().buffers_allocated, 6, "no buffer was allocated again");
}

#[test]
fn setting_the_configuration_repeatedly_does_not_delay_reaping() {
    let mut config = lines().min_workers(5).reap_interval(Duration::from_millis(60));
    let mut rig = echo(config.clone());
    config = config.min_workers(1);
    rig.until(|rig| {
        rig.manager.set_config(config.clone()).unwrap();
        rig.manager.turn(Some(Duration::from_millis(5))).unwrap();
        rig.manager.stats().spare == 1
    });
    rig.manager.set_config(config.min_workers(3)).unwrap();
    rig.manager.set_config(lines().min_workers(1).reap_interval(LATER)).unwrap();
    rig.pass(Duration::from_millis(150));
    assert_eq!(rig.manager.stats().spare, 3, "a changed interval begins again");
}

#[test]
fn spare_buffers_above_the_minimum_are_reaped_after_an_unused_interval() {
    let interval = Duration::from_millis(40);
    for min in [0, 2] {
        let mut rig = echo(lines().min_workers(min).reap_interval(interval));
        let mut clients: Vec<TcpStream> = (0..6).map(|_| rig.connect().0).collect();
        for client in &mut clients {
            client.write_all(b"part").unwrap();
        }
        rig.bytes_in(24);
        let began = Instant::now();
        for client in &mut clients {
            client.write_all(b"ed\n").unwrap();
        }
        rig.requests(6);
        let max = rig.manager.stats().spare;
        rig.until(|rig| rig.manager.stats().spare == min as u64);
        assert!(max == 6 || began.elapsed() >= interval, "{max} spare buffers");
        rig.pass(3 * interval);
        assert_eq!(rig.manager.stats().spare, min as u64);
        assert_eq!(rig.manager.next_timeout().map(|next| next > interval), Some(true), "idle");
    }
}

#[test]
fn a_steady_demand_allocates_no_new_buffers_each_interval() {
    let interval = Duration::from_millis(60);
    let mut rig = echo(lines().min_workers(0).reap_interval(interval));
    let (mut client, _) = rig.connect();
    let began = Instant::now();
    let (mut rounds, mut bytes) = (0, 0);
    while began.elapsed() < 5 * interval {
        client.write_all(b"part").unwrap();
        bytes += 4;
        rig.bytes_in(bytes);
        client.write_all(b"ed\n").unwrap();
        bytes += 3;
        rounds += 1;
        rig.requests(rounds);
    }
    let stats = rig.manager.stats();
    assert_eq!((stats.buffers_allocated, stats.spare), (2, 1), "{rounds} rounds");
}

#[test]
fn put_at_the_maximum_is_busy_and_returns_the_socket() {
    let mut rig = echo(lines().max_workers(2));
    let (first, _) = rig.connect();
    let (_second, _) = rig.connect();
    let (mut third, ours) = pair();
    let refused = rig.manager.put(ours).unwrap_err();
    assert!(matches!(refused.error(), Error::Busy { max_workers: 2 }));
    assert!(refused.to_string().starts_with("can't put, pool is busy"), "{refused}");
    assert_eq!((rig.manager.stats().busy, rig.manager.stats().live), (1, 2));
    drop(first);
    rig.first_close();
    rig.manager.put(refused.into_socket()).expect("a worker is free again");
    third.write_all(b"hello\n").unwrap();
    assert_eq!(rig.read_exact(&mut third, 5), b"hello");
    assert_eq!(rig.manager.stats().peak, 2);
}

#[test]
fn lowering_the_maximum_closes_nothing_and_put_is_busy_until_below() {
    let mut rig = echo(lines().max_workers(4));
    let mut clients: Vec<TcpStream> = (0..4).map(|_| rig.connect().0).collect();
    rig.manager.set_config(lines().max_workers(2)).unwrap();
    for client in &mut clients {
        client.write_all(b"alive\n").unwrap();
        assert_eq!(rig.read_exact(client, 5), b"alive");
    }
    for left in [4, 3, 2] {
        assert_eq!(rig.manager.stats().live, left);
        assert!(rig.manager.put(pair().1).unwrap_err().is_busy(), "with {left} of 2");
        clients.pop();
        rig.until(|rig| rig.manager.stats().live < left);
    }
    let (_client, _) = rig.connect();
    assert!(rig.manager.put(pair().1).unwrap_err().is_busy());
    assert_eq!(rig.record.closed(), [CloseReason::Eof; 3]);
}

#[test]
fn raising_the_maximum_admits_more_connections_at_once() {
    let mut rig = echo(lines().max_workers(1));
    let (_first, _) = rig.connect();
    assert!(rig.manager.put(pair().1).unwrap_err().is_busy());
    rig.manager.set_config(lines().max_workers(2)).unwrap();
    let (_second, _) = rig.connect();
    assert!(rig.manager.put(pair().1).unwrap_err().is_busy());
    rig.manager.set_config(lines().max_workers(None)).unwrap();
    let _rest: Vec<_> = (0..5).map(|_| rig.connect()).collect();
    assert_eq!((rig.manager.stats().live, rig.manager.stats().peak), (7, 7));
}

#[test]
fn an_invalid_configuration_changes_nothing_and_names_both_numbers() {
    let mut rig = echo(lines().max_workers(1));
    let (mut client, _) = rig.connect();
    let before = format!("{:?}", rig.manager.config());
    for (wrong, numbers) in [
        (lines().min_workers(7).max_workers(3), ["7", "3"]),
        (Config::new().buffer_size((16 << 20) + 1), ["16777217", "16777216"]),
        (Config::new().write_limit(1 << 40), ["1099511627776", "4294967295"]),
        (Config::new().max_workers(1 << 32), ["4294967296", "4294967294"]),
    ] {
        let refused = rig.manager.set_config(wrong.clone().framing(Framing::Drained));
        let text = refused.unwrap_err().to_string();
        assert!(numbers.iter().all(|number| text.contains(number)), "{text}");
        assert_eq!(format!("{:?}", rig.manager.config()), before);
        let refused = Manager::new(wrong, |_, _| Ok(())).unwrap_err();
        assert_eq!(refused.to_string(), text);
    }
    assert!(rig.manager.put(pair().1).unwrap_err().is_busy(), "the maximum is unchanged");
    client.write_all(b"not yet a line").unwrap();
    rig.bytes_in(14);
    assert_eq!(rig.record.requests(), [], "the framing is unchanged");
}

#[test]
fn a_configuration_error_can_be_matched_and_converted() {
    let refused = Manager::new(Config::new().min_workers(7).max_workers(3), |_, _| Ok(()));
    match refused.unwrap_err() {
        Error::Config(error) => {
            assert_eq!(error, ConfigError::MinAboveMax { min: 7, max: 3 });
            assert_eq!(std::io::Error::from(error).kind(), ErrorKind::InvalidInput);
        }
        other => panic!("{other}"),
    }
    assert!(Manager::new(Config::new().min_workers(7).max_workers(7), |_, _| Ok(())).is_ok());
}

#[test]
fn the_configuration_that_set_config_returns_is_in_effect() {
    let mut rig = echo(lines());
    let effective = rig.manager.set_config(Config::new().max_workers(1)).unwrap().clone();
    assert_eq!(effective.buffer_size, 5120);
    assert_eq!(effective.write_limit, 1 << 20);
    assert_eq!(effective.clients_deadline, Duration::from_secs(3));
    assert_eq!(effective.reap_interval, Duration::from_secs(2));
    assert_eq!(effective.max_workers, Some(1));
    assert_eq!(format!("{effective:?}"), format!("{:?}", rig.manager.config()));
    let (mut client, _) = rig.connect();
    assert!(rig.manager.put(pair().1).unwrap_err().is_busy());
    client.write_all(&[b'x'; 5120]).unwrap();
    assert_eq!(rig.requests(1), [(Cause::Full, vec![b'x'; 5120])]);
}

#[test]
fn a_smaller_buffer_size_applies_once_the_larger_buffer_is_released() {
    let mut rig = echo(filled(32).min_workers(2));
    let (mut client, _) = rig.connect();
    client.write_all(&[b'a'; 20]).unwrap();
    rig.bytes_in(20);
    rig.manager.set_config(filled(8).min_workers(2)).unwrap();
    assert_eq!(rig.manager.stats().spare, 2);
    rig.quiet();
    assert_eq!(rig.record.requests(), [], "the held bytes stay whole");
    client.write_all(&[b'a'; 12 + 8]).unwrap();
    let full = |size: usize| (Cause::Full, vec![b'a'; size]);
    assert_eq!(rig.requests(2), [full(32), full(8)]);
    let (mut another, _) = rig.connect();
    another.write_all(&[b'a'; 16]).unwrap();
    assert_eq!(rig.requests(4)[2..], [full(8), full(8)]);
    rig.quiet();
    assert_eq!(rig.manager.stats().spare, 2, "the buffer of the old size is freed");
}

#[test]
fn a_larger_buffer_size_applies_to_connections_that_hold_nothing() {
    let mut rig = echo(filled(8));
    let (mut client, _) = rig.connect();
    client.write_all(&[b'a'; 8]).unwrap();
    rig.requests(1);
    rig.manager.set_config(filled(24)).unwrap();
    client.write_all(&[b'a'; 24]).unwrap();
    let full = |size: usize| (Cause::Full, vec![b'a'; size]);
    assert_eq!(rig.requests(2), [full(8), full(24)]);
}

/// A frame that fits into a buffer of the new size is not overlong, although its first bytes
/// arrived in a smaller buffer.
#[test]
fn a_larger_buffer_size_applies_at_once_in_the_middle_of_a_frame() {
    let config = |size: usize| lines().buffer_size(size);
    let mut rig = echo(config(8));
    let (mut client, _) = rig.connect();
    client.write_all(b"begun").unwrap();
    rig.bytes_in(5);
    rig.manager.set_config(config(24)).unwrap();
    client.write_all(b" and finished\n").unwrap();
    assert_eq!(rig.requests(1), [(Cause::Framed, b"begun and finished".to_vec())]);
}

#[test]
fn a_write_beyond_the_limit_queues_nothing_and_closes() {
    let config = Config::new().framing(Framing::Drained).write_limit(100);
    let mut rig = rig(config, |conn: &mut Conn<'_>, body: &[u8]| {
        if body == b"all" {
            return conn.write_all(&[b'r'; 100]);
        }
        conn.write_all(&[b'r'; 60])?;
        let refused = conn.write(&[b'x'; 41]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StorageFull);
        // The connection is closed although the callback ignores the error.
        Ok(())
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"all").unwrap();
    assert_eq!(rig.read_exact(&mut client, 100), [b'r'; 100], "exactly write_limit is allowed");
    client.write_all(b"more").unwrap();
    assert_eq!(rig.first_close(), CloseReason::WriteLimit);
    let end = rig.record.ends().remove(0);
    assert_eq!((end.bytes_out, end.bytes_unsent), (100, 60));
    assert_eq!(rig.manager.stats().bytes_unsent, 60);
    assert_eq!(rig.read_to_end(&mut client).unwrap_or_default(), b"");
}

#[test]
fn the_write_limit_counts_unsent_bytes_and_can_be_changed() {
    let config = |limit| Config::new().framing(Framing::Drained).write_limit(limit);
    let mut rig = rig(config(100), |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(&[b'r'; 80]));
    let (mut client, _) = rig.connect();
    for _ in 0..5 {
        client.write_all(b"more").unwrap();
        rig.read_exact(&mut client, 80);
    }
    rig.manager.set_config(config(79)).unwrap();
    client.write_all(b"more").unwrap();
    assert_eq!(rig.first_close(), CloseReason::WriteLimit);
    let end = rig.record.ends().remove(0);
    assert_eq!((end.bytes_out, end.bytes_unsent), (400, 0));
}

#[test]
fn bytes_sent_by_commands_count_against_the_write_limit() {
    let config = Config::new().framing(Framing::Drained).write_limit(10);
    let mut target = None;
    let mut rig = rig(config, move |conn: &mut Conn<'_>, body: &[u8]| {
        match target {
            None => target = Some(conn.id()),
            Some(target) => conn.commands().send(target, vec![b's'; body.len()])?,
        }
        Ok(())
    });
    let ((mut first, _), (mut second, _)) = (rig.connect(), rig.connect());
    first.write_all(b"me").unwrap();
    rig.requests(1);
    second.write_all(b"ten bytes.").unwrap();
    assert_eq!(rig.read_exact(&mut first, 10), [b's'; 10]);
    second.write_all(b"more than ten").unwrap();
    assert_eq!(rig.first_close(), CloseReason::WriteLimit);
    assert_eq!(rig.manager.stats().live, 1);
}

#[test]
fn every_byte_read_was_delivered_or_is_counted_as_dropped() {
    // A body of this framing includes its delimiter, so the lengths of all bodies add up to the
    // number of consumed bytes.
    let whole = Framing::custom(|held| {
        let end = held.iter().position(|&byte| byte == b'\n');
        end.map_or(pool_manager::Frame::Partial, |end| pool_manager::Frame::Complete(end + 1))
    });
    let config = Config::new().framing(whole).clients_deadline(LATER);
    let mut rig = rig(config, |conn: &mut Conn<'_>, body: &[u8]| {
        if body == b"close\n" {
            conn.close();
        }
        conn.write_all(body)
    });
    for (input, dropped) in [
        (&b"one\ntwo\nclose\ndropped\nrest"[..], 12),
        (b"one\nclose\n", 0),
        (b"close\nall of this", 11),
    ] {
        let (mut client, _) = rig.connect();
        let before = rig.record.ends().len();
        let delivered = rig.record.requests().len();
        client.write_all(input).unwrap();
        rig.read_to_end(&mut client).unwrap();
        let end = rig.record.ends().remove(before);
        let bodies: usize =
            rig.record.requests()[delivered..].iter().map(|(_, body)| body.len()).sum();
        assert_eq!(end.bytes_in, input.len() as u64);
        assert_eq!(end.bytes_dropped, dropped);
        assert_eq!(end.bytes_in, bodies as u64 + end.bytes_dropped);
        assert_eq!((end.bytes_out, end.bytes_unsent), (bodies as u64, 0));
    }
    let (stats, ends) = (rig.manager.stats(), rig.record.ends());
    assert_eq!(stats.bytes_in, ends.iter().map(|end| end.bytes_in).sum::<u64>());
    assert_eq!(stats.bytes_out, ends.iter().map(|end| end.bytes_out).sum::<u64>());
    assert_eq!(stats.bytes_dropped, 23);
    assert_eq!(stats.closed_total(), 3);
    assert_eq!((stats.live, stats.put), (0, 3));
}

#[test]
fn a_stop_drops_and_counts_held_bytes() {
    let mut rig = echo(filled(64).stop_deadline(Duration::ZERO));
    let (mut client, _) = rig.connect();
    client.write_all(b"held").unwrap();
    rig.bytes_in(4);
    let report = rig.manager.stop().unwrap();
    assert_eq!((report.aborted, report.dropped_bytes), (1, 4));
    assert_eq!(rig.record.ends()[0].bytes_dropped, 4);
    assert_eq!(rig.record.requests(), []);
}
