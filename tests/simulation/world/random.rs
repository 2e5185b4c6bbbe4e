//! Random configurations. Their limits are small, so that every limit is reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use pool_manager::sim::{Answer, Rng};
use pool_manager::{Config, Framing, Overload, Prefix, RateLimit};

use super::oracle;

fn framing(rng: &mut Rng) -> Framing {
    match rng.below(5) {
        0 => Framing::Filled,
        1 => Framing::Drained,
        2 => Framing::Delimited(b'\n'),
        3 => Framing::LengthPrefixed {
            prefix: Prefix::U16Be,
            limit: positive(rng.below(2) * (1 + rng.below(60))).unwrap_or(Framing::NO_LIMIT),
        },
        _ => oracle::counted(),
    }
}

/// Returns `None` for zero.
fn positive(value: usize) -> Option<usize> {
    (value > 0).then_some(value)
}

/// Returns a random valid configuration. In a crowded run it may allow hundreds of workers.
pub(crate) fn config(rng: &mut Rng, crowded: bool) -> Config {
    let millis = |millis: usize| Duration::from_millis(millis as u64);
    let max = if crowded { rng.below(2) * 500 } else { rng.below(6) };
    let min = rng.below(max.min(5) + 1);
    let deadline = Duration::from_micros(1_000 + rng.below(500_000) as u64);
    // This generator is separate, so that recorded failing seeds still take the same steps.
    let mut others = Rng::new(deadline.as_nanos() as u64);
    let spin = others.below(120).saturating_sub(90);
    // In a crowded run many clients share few addresses, so the limit is larger.
    let per_peer = others.below(3).saturating_sub(1) * (1 + others.below(4));
    let rate = [5, 60, 700, 3_000][others.below(4)];
    let limit = RateLimit::per_second(rate).burst(1 + others.below(12) as u32);
    let (max_request, memory_limit) = request_limits(&mut Rng::new(!deadline.as_nanos() as u64));
    let tick = Rng::new(deadline.as_nanos() as u64 ^ 7).below(400).saturating_sub(200);
    let paused = Rng::new(deadline.as_nanos() as u64 ^ 9).below(1_200).saturating_sub(600);
    let connect = 1 + Rng::new(deadline.as_nanos() as u64 ^ 8).below(400);
    let buffer_size = 8 + rng.below(200);
    Config::new()
        .rate_limit(others.permille(250).then_some(limit))
        .max_per_peer(positive(per_peer * if crowded { 60 } else { 1 }))
        .spin(Duration::from_micros(spin as u64))
        .tick(positive(tick).map(millis))
        .connect_deadline(millis(connect))
        .paused_deadline(positive(paused).map(millis))
        .framing(framing(rng))
        .buffer_size(buffer_size)
        .max_request(positive(max_request).map(|more| buffer_size + more))
        .memory_limit(positive(memory_limit).map(|more| buffer_size + max_request + more))
        .max_workers(positive(max))
        .min_workers(min)
        .clients_deadline(deadline)
        .request_deadline(positive(rng.below(2) * rng.below(900)).map(millis))
        .write_limit(300 + rng.below(5_000))
        .stop_deadline(millis(rng.below(300)))
        .reap_interval(millis(1 + rng.below(500)))
        .overload(if rng.permille(500) {
            Overload::Pause
        } else if others.permille(500) {
            Overload::EvictIdle
        } else {
            Overload::Reject(b"no".into())
        })
}

/// Returns by how much `max_request` exceeds the buffer size, and by how much `memory_limit`
/// exceeds the longest request. The value 0 means that there is no such limit. `rng` is a separate
/// generator, so that recorded failing seeds still take the same steps.
fn request_limits(rng: &mut Rng) -> (usize, usize) {
    (rng.below(2) * (1 + rng.below(2_000)), rng.below(2) * (1 + rng.below(1_000)))
}

/// Returns a configuration that must be refused as a whole.
pub(crate) fn invalid(rng: &mut Rng) -> Config {
    let valid = config(rng, false);
    let below = valid.buffer_size - 1;
    match rng.below(3) {
        0 if below % 2 == 0 => valid.max_workers(0),
        0 => valid.max_workers(1).min_workers(2),
        1 => match below % 3 {
            0 => valid.max_request(below),
            1 => valid.max_request(None).memory_limit(below),
            _ => valid.buffer_size(usize::MAX),
        },
        _ => valid.write_limit(usize::MAX),
    }
}

/// Returns the address for the connect with this number. No two connects share an address.
pub(crate) fn host_addr(number: u64) -> SocketAddr {
    (Ipv4Addr::from_bits(0x0a00_0000 | number as u32), 80).into()
}

/// Returns the answer of a host and the deadline of the connect. A deadline of zero stands for the
/// configured deadline.
pub(crate) fn answer(rng: &mut Rng) -> (Answer, Duration) {
    let after = Duration::from_micros(rng.below(2) as u64 * rng.below(300_000) as u64);
    let own_deadline = Duration::from_micros(rng.below(2) as u64 * rng.below(400_000) as u64);
    let answer = match rng.below(8) {
        0..4 => Answer::Accept(after),
        4 => Answer::Refuse(after),
        5 => Answer::Fail(after),
        _ => Answer::Never,
    };
    (answer, own_deadline)
}

/// Returns the address of a client. There are few addresses, in different notations.
pub(crate) fn addr(rng: &mut Rng) -> IpAddr {
    let near = Ipv4Addr::new(10, 0, 0, rng.below(3) as u8);
    match rng.below(3) {
        0 => near.into(),
        1 => near.to_ipv6_mapped().into(),
        _ => {
            let host = rng.below(1 << 16) as u16;
            Ipv6Addr::new(0x2001, 0xdb8, 0, rng.below(2) as u16, 0, host, 0, 1).into()
        }
    }
}
