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
    assert_eq!(debug_text(manager.config()), debug_text(&first));
    for _ in 0..2 {
        set(&mut manager, &any_config(u)?);
        if !is_affordable(manager.config()) {
            return Ok(());
        }
        manager.start().expect("an accepted configuration starts");
        serve(&mut manager, u.bytes(u.len().min(16))?);
        let config = any_config(u)?;
        if is_affordable(&config) {
            if u.arbitrary()? {
                set(&mut manager, &config);
            } else {
                set_by_handle(&mut manager, &config);
            }
            serve(&mut manager, u.bytes(u.len().min(16))?);
        }
        let report = manager.stop().expect("the manager runs");
        assert_eq!(manager.stats().live, 0, "{report:?}");
        manager.stop().expect_err("the manager has stopped");
    }
    Ok(())
}

fn set<H: Handler>(manager: &mut Manager<H>, config: &Config) {
    let before = debug_text(manager.config());
    let expected = documented_result(config);
    match manager.set_config(config.clone()) {
        Ok(now) => {
            assert_eq!(expected, Ok(()));
            assert_eq!(debug_text(now), debug_text(config));
        }
        Err(Error::Config(refused)) => {
            assert_eq!(Err(refused), expected);
            assert_eq!(debug_text(manager.config()), before, "a refused configuration was applied");
        }
        Err(error) => panic!("{error}"),
    }
}

/// Sets the configuration by a handle. It takes effect at the next turn.
fn set_by_handle<H: Handler>(manager: &mut Manager<H>, config: &Config) {
    let before = debug_text(manager.config());
    let expected = documented_result(config);
    let outcome = manager.handle().set_config(config.clone());
    manager.turn(Some(Duration::ZERO)).expect("turn");
    let now = debug_text(manager.config());
    match outcome {
        Ok(()) => assert_eq!((expected, now), (Ok(()), debug_text(config))),
        Err(Error::Config(refused)) => assert_eq!((expected, now), (Err(refused), before)),
        Err(error) => panic!("{error}"),
    }
}

/// Checks that connections up to the maximum are taken, served and closed, and that one more
/// connection is refused.
fn serve<H: Handler>(manager: &mut Manager<H>, request: &[u8]) {
    const CLIENTS: usize = 3;
    let max = manager.config().max_workers.map_or(CLIENTS, |max| max.min(CLIENTS));
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
    let (default, off) = ("for the default, do not set it", "to turn it off, set None");
    let zero = |field, is_zero, instead| {
        if is_zero { Err(ConfigError::Zero { field, instead }) } else { Ok(()) }
    };
    zero("clients_deadline", config.clients_deadline.is_zero(), default)?;
    zero("reap_interval", config.reap_interval.is_zero(), default)?;
    zero("request_deadline", config.request_deadline == Some(Duration::ZERO), off)?;
    zero("buffer_size", config.buffer_size == 0, default)?;
    zero("write_limit", config.write_limit == 0, default)?;
    zero("max_workers", config.max_workers == Some(0), off)?;
    let min = config.min_workers;
    if let Some(max) = config.max_workers.filter(|&max| min > max) {
        return Err(ConfigError::MinAboveMax { min, max });
    }
    let limit = |field, value: Option<usize>, max| match value {
        Some(value) if value > max => Err(ConfigError::TooLarge { field, value, max }),
        _ => Ok(()),
    };
    let buffer_size = config.buffer_size;
    limit("buffer_size", Some(buffer_size), BUFFER_SIZE_MAX)?;
    limit("max_request", config.max_request, MAX_REQUEST_MAX)?;
    limit("min_workers", Some(min), WARM_BYTES_MAX / (buffer_size + WORKER_BYTES))?;
    limit("max_workers", config.max_workers, WORKERS_MAX)?;
    limit("write_limit", Some(config.write_limit), WRITE_LIMIT_MAX)?;
    let below = |field, value: Option<usize>, other, least| match value {
        Some(value) if value < least => Err(ConfigError::Below { field, value, other, least }),
        _ => Ok(()),
    };
    below("max_request", config.max_request, "buffer_size", buffer_size)?;
    match config.max_request {
        None => below("memory_limit", config.memory_limit, "buffer_size", buffer_size),
        Some(longest) => below("memory_limit", config.memory_limit, "max_request", longest),
    }
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
        .max_workers(optional(u, |u| size(u, WORKERS_MAX))?)
        .clients_deadline(duration(u)?)
        .request_deadline(optional(u, duration)?)
        .write_limit(size(u, WRITE_LIMIT_MAX)?)
        .max_request(optional(u, request_limit)?)
        .memory_limit(optional(u, request_limit)?)
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
        0..=4 => u.int_in_range(1..=9)?,
        5 => limit.saturating_sub(1) + u.int_in_range(0..=2)?,
        _ => u.arbitrary::<usize>()? >> u.int_in_range(0..=63)?,
    })
}

/// Returns a value or `None`.
fn optional<T>(
    u: &mut Unstructured<'_>,
    value: impl FnOnce(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Option<T>> {
    Ok(if u.arbitrary()? { Some(value(u)?) } else { None })
}

/// Returns a size near the default buffer size, or any size.
fn request_limit(u: &mut Unstructured<'_>) -> Result<usize> {
    Ok(match u.int_in_range(0..=2)? {
        0 => u.int_in_range(5_110..=5_130)?,
        _ => size(u, MAX_REQUEST_MAX)?,
    })
}

fn duration(u: &mut Unstructured<'_>) -> Result<Duration> {
    Ok(match u.int_in_range(0..=9)? {
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
