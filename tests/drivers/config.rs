//! Fuzz driver for configurations: any configuration either runs, or is refused as a whole with the
//! documented error.

use std::borrow::Cow;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use arbtest::arbitrary::{Result, Unstructured};
use pool_manager::{Config, ConfigError, Conn, Error, Framing, Handler, Manager, Overload, Prefix};

/// The documented limits.
const BUFFER_SIZE_MAX: usize = 16 << 20;
const MAX_REQUEST_MAX: usize = 1 << 30;
const WRITE_LIMIT_MAX: usize = (4 << 30) - 1;
const WORKERS_MAX: usize = (1 << 32) - 2;
const WARM_BYTES_MAX: usize = 64 << 30;
const WORKER_BYTES: usize = 512;

/// Maximum number of bytes for warm workers in this driver. Larger configurations are checked, but
/// not started.
const AFFORDABLE: usize = 16 << 20;

/// Connections that have nothing to wait for must end within this number of turns.
const TURNS: usize = 1_000;

pub(crate) fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    let first = any_config(u)?;
    let mut manager = match (Manager::new(first.clone(), echo), documented_result(&first)) {
        (Ok(manager), Ok(())) => manager,
        (Err(Error::Config(refused)), Err(expected)) => {
            assert_eq!(refused, expected);
            return Ok(());
        }
        (made, expected) => panic!("{expected:?} expected for {first:?}, but got {made:?}"),
    };
    assert_eq!(debug_text(manager.config()), debug_text(&effective(first)));
    for _ in 0..2 {
        set(&mut manager, any_config(u)?);
        if !is_affordable(manager.config()) {
            return Ok(());
        }
        manager.start().expect("an accepted configuration starts");
        serve(&mut manager, u.bytes(u.len().min(16))?);
        let config = any_config(u)?;
        if is_affordable(&config) {
            if u.arbitrary()? {
                set(&mut manager, config);
            } else {
                set_by_handle(&mut manager, config);
            }
            serve(&mut manager, u.bytes(u.len().min(16))?);
        }
        let report = manager.stop().expect("the manager runs");
        assert_eq!(manager.stats().live, 0, "{report:?}");
        manager.stop().expect_err("the manager has stopped");
    }
    Ok(())
}

fn set<H: Handler>(manager: &mut Manager<H>, config: Config) {
    let before = debug_text(manager.config());
    let expected = documented_result(&config);
    match manager.set_config(config.clone()) {
        Ok(now) => {
            assert_eq!(expected, Ok(()));
            assert_eq!(debug_text(now), debug_text(&effective(config)));
        }
        Err(Error::Config(refused)) => {
            assert_eq!(Err(refused), expected);
            assert_eq!(debug_text(manager.config()), before, "a refused configuration was applied");
        }
        Err(error) => panic!("{error}"),
    }
}

/// Sets the configuration by a handle. It takes effect at the next turn.
fn set_by_handle<H: Handler>(manager: &mut Manager<H>, config: Config) {
    let before = debug_text(manager.config());
    let expected = documented_result(&config);
    let outcome = manager.handle().set_config(config.clone());
    manager.turn(Some(Duration::ZERO)).expect("turn");
    let now = debug_text(manager.config());
    match outcome {
        Ok(()) => assert_eq!((expected, now), (Ok(()), debug_text(&effective(config)))),
        Err(Error::Config(refused)) => assert_eq!((expected, now), (Err(refused), before)),
        Err(error) => panic!("{error}"),
    }
}

/// Checks that connections up to the maximum are taken, served and closed, and that one more
/// connection is refused.
fn serve<H: Handler>(manager: &mut Manager<H>, request: &[u8]) {
    const CLIENTS: usize = 3;
    let max = match manager.config().max_workers {
        0 => CLIENTS,
        max => max.min(CLIENTS),
    };
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let (mut client, ours) = UnixStream::pair().expect("pair");
        match manager.put(ours) {
            Ok(_) => assert!(number < max, "a connection above the maximum was taken"),
            Err(refused) => {
                assert!(matches!(refused.error(), Error::Busy { max_workers: all } if *all == max));
                assert_eq!(number, max);
                break;
            }
        }
        client.write_all(request).expect("room for a few bytes");
        client.shutdown(Shutdown::Write).expect("half-close");
        clients.push(client);
    }
    for _ in 0..TURNS {
        if manager.stats().live == 0 {
            return;
        }
        manager.turn(Some(Duration::ZERO)).expect("turn");
    }
    panic!("connections do not end: {} under {:?}", manager.stats(), manager.config());
}

/// Returns the result that the documentation defines for a configuration.
fn documented_result(config: &Config) -> std::result::Result<(), ConfigError> {
    let (min, max) = (config.min_workers, config.max_workers);
    if max > 0 && min > max {
        return Err(ConfigError::MinAboveMax { min, max });
    }
    let buffer_size = if config.buffer_size == 0 { 5120 } else { config.buffer_size };
    let limit = |field, value, max| {
        if value > max { Err(ConfigError::TooLarge { field, value, max }) } else { Ok(()) }
    };
    limit("buffer_size", buffer_size, BUFFER_SIZE_MAX)?;
    limit("max_request", config.max_request, MAX_REQUEST_MAX)?;
    let affordable = WARM_BYTES_MAX / (buffer_size + WORKER_BYTES);
    limit("min_workers", min, affordable)?;
    limit("max_workers", max, WORKERS_MAX)?;
    limit("write_limit", config.write_limit, WRITE_LIMIT_MAX)?;
    let (max_request, memory) = (config.max_request, config.memory_limit);
    let below = |field, value, other, least| {
        let fits = value == 0 || value >= least;
        if fits { Ok(()) } else { Err(ConfigError::Below { field, value, other, least }) }
    };
    below("max_request", max_request, "buffer_size", buffer_size)?;
    match max_request {
        0 => below("memory_limit", memory, "buffer_size", buffer_size),
        _ => below("memory_limit", memory, "max_request", max_request),
    }
}

/// Replaces zeros by the defaults that they stand for.
fn effective(mut config: Config) -> Config {
    let default = Config::new();
    if config.buffer_size == 0 {
        config.buffer_size = default.buffer_size;
    }
    if config.write_limit == 0 {
        config.write_limit = default.write_limit;
    }
    if config.clients_deadline.is_zero() {
        config.clients_deadline = default.clients_deadline;
    }
    if config.reap_interval.is_zero() {
        config.reap_interval = default.reap_interval;
    }
    config
}

fn debug_text(config: &Config) -> String {
    format!("{config:?}")
}

fn is_affordable(config: &Config) -> bool {
    config.min_workers.saturating_mul(config.buffer_size.saturating_add(WORKER_BYTES)) <= AFFORDABLE
}

fn any_config(u: &mut Unstructured<'_>) -> Result<Config> {
    let mut config = Config::new()
        .debug(u.arbitrary()?)
        .buffer_size(size(u, BUFFER_SIZE_MAX)?)
        .min_workers(size(u, WORKERS_MAX)?)
        .max_workers(size(u, WORKERS_MAX)?)
        .clients_deadline(duration(u)?)
        .request_deadline(duration(u)?)
        .write_limit(size(u, WRITE_LIMIT_MAX)?)
        .max_request(request_limit(u)?)
        .memory_limit(request_limit(u)?)
        .reap_interval(duration(u)?)
        .framing(framing(u)?);
    if u.arbitrary()? {
        config = config.stop_deadline(duration(u)?).slow_callback(duration(u)?);
    }
    Ok(match u.int_in_range(0..=2)? {
        0 => config,
        1 => config.overload(Overload::Pause),
        _ => config.overload(Overload::Reject(Cow::Owned(u.bytes(u.len().min(8))?.to_vec()))),
    })
}

/// Returns a small size, a size near the limit, or any size.
fn size(u: &mut Unstructured<'_>, limit: usize) -> Result<usize> {
    Ok(match u.int_in_range(0..=7)? {
        0..=4 => u.int_in_range(0..=9)?,
        5 => limit.saturating_sub(1) + u.int_in_range(0..=2)?,
        _ => u.arbitrary::<usize>()? >> u.int_in_range(0..=63)?,
    })
}

/// Returns 0 (no limit), a size near the default buffer size, or any size.
fn request_limit(u: &mut Unstructured<'_>) -> Result<usize> {
    Ok(match u.int_in_range(0..=4)? {
        0 | 1 => 0,
        2 => u.int_in_range(5_110..=5_130)?,
        _ => size(u, MAX_REQUEST_MAX)?,
    })
}

fn duration(u: &mut Unstructured<'_>) -> Result<Duration> {
    Ok(match u.int_in_range(0..=4)? {
        0 => Duration::ZERO,
        1 => Duration::MAX,
        2 => Duration::from_nanos(u.int_in_range(0..=2_000_000)?),
        3 => Duration::from_millis(u.arbitrary()?),
        _ => Duration::from_secs(60),
    })
}

fn framing(u: &mut Unstructured<'_>) -> Result<Framing> {
    let prefixes = [Prefix::U8, Prefix::U16Be, Prefix::U16Le, Prefix::U32Be, Prefix::U32Le];
    Ok(match u.int_in_range(0..=3)? {
        0 => Framing::Filled,
        1 => Framing::Drained,
        2 => Framing::Delimited(u.arbitrary()?),
        _ => Framing::LengthPrefixed { prefix: *u.choose(&prefixes)?, limit: u.arbitrary()? },
    })
}
