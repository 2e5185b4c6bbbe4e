//! The configuration: its fields, their defaults and the checks.
//!
//! A configuration is a plain value. It is checked as a whole before it is applied, so that an
//! invalid configuration changes nothing.

mod invalid;
mod overload;
mod rate;
mod setters;

use std::borrow::Cow;
use std::time::Duration;

use crate::framing::Framing;
pub use invalid::ConfigError;
pub use overload::Overload;
pub use rate::RateLimit;

/// The reply that a listener sends to refused connections by default. The Go package that this
/// crate replaces sends the same string.
pub const ERROR_SERVER_BUSY: &str = "ERROR_SERVER_BUSY";

const BUFFER_SIZE: usize = 5120;
const BUFFER_SIZE_MAX: usize = 16 << 20;
const MAX_REQUEST_MAX: usize = 1 << 30;
const WRITE_LIMIT: usize = 1 << 20;
const CLIENTS_DEADLINE: Duration = Duration::from_secs(3);
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
const PAUSED_DEADLINE: Duration = Duration::from_secs(30);
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
const REAP_INTERVAL: Duration = Duration::from_secs(2);

/// The settings of a [`Manager`](crate::Manager). Start from [`Config::new`] and chain setters.
///
/// The documentation of each field states the default. What can be turned off is an `Option`, and
/// `None` turns it off. A zero is an error where it would make no sense. Durations have no
/// maximum unless the field states one. A deadline that is too large for the clock never passes.
/// Deadlines are rounded up to a millisecond.
///
/// | field | default | unit | off |
/// |---|---|---|---|
/// | `debug` | false | | false |
/// | `buffer_size` | 5120 | bytes | |
/// | `max_request` | `None`: `buffer_size` | bytes | |
/// | `memory_limit` | `None` | bytes | `None` |
/// | `min_workers` | 0 | buffers | 0 |
/// | `max_workers` | `None` | connections | `None` |
/// | `clients_deadline` | 3 s | | |
/// | `request_deadline` | 30 s | | `None` |
/// | `paused_deadline` | 30 s | | `None` |
/// | `connect_deadline` | 3 s | | |
/// | `framing` | `Filled` | | |
/// | `write_limit` | 1 MiB | bytes | |
/// | `reap_interval` | 2 s | | |
/// | `stop_deadline` | `None`: `clients_deadline` | | |
/// | `max_per_peer` | `None` | connections | `None` |
/// | `rate_limit` | `None` | requests per second | `None` |
/// | `overload` | `Reject` | | |
/// | `spin` | 0 | | 0 |
/// | `tick` | `None` | | `None` |
/// | `slow_callback` | `None` | | `None` |
///
/// The setters of optional fields take a value or `None`.
///
/// ```
/// use pool_manager::{Config, Framing};
/// use std::time::Duration;
///
/// let config = Config::new()
///     .min_workers(5)
///     .max_workers(10)
///     .clients_deadline(Duration::from_millis(500))
///     .framing(Framing::Drained);
/// assert_eq!(config.max_workers, Some(10));
/// assert_eq!(config.buffer_size, 5120);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Logs the events of each connection through `log`, at level `debug`. Default: false.
    pub debug: bool,
    /// Size of a connection's input buffer in bytes. It is also the maximum length of a body,
    /// unless `max_request` is larger. Default: 5120. Maximum: 16 MiB.
    pub buffer_size: usize,
    /// Maximum size of a request in bytes, including its delimiter or length prefix. Default:
    /// `None`, which means `buffer_size`. A value must be at least `buffer_size`. Maximum: 1 GiB.
    ///
    /// If a request does not fit in `buffer_size`, its buffer doubles in size each time the buffer
    /// is full. A prefix that announces a long body does not allocate memory. The buffer is freed
    /// after the request is delivered. The whole request has to arrive within `request_deadline`.
    /// If a request is longer than `max_request`, the bytes held so far are delivered with
    /// [`Cause::Overlong`](crate::Cause::Overlong).
    ///
    /// This field has no effect under [`Framing::Filled`] and [`Framing::Drained`], where a body is
    /// at most `buffer_size` bytes long.
    pub max_request: Option<usize>,
    /// Maximum number of bytes in the input buffers of all connections together. Default: `None`,
    /// which means no limit. A value must be at least `max_request`, or at least `buffer_size` if
    /// `max_request` is `None`.
    ///
    /// Each connection that holds a part of a request keeps one buffer. The buffer has
    /// `buffer_size` bytes, or more if it has grown. The limit counts the capacity of these buffers
    /// ([`Stats::bytes_held`](crate::Stats::bytes_held)). A request that fits in `buffer_size` and
    /// arrives as a whole needs no such buffer, so small requests are served even when the limit is
    /// reached. Warm buffers and unsent replies (see `write_limit`) are not counted.
    ///
    /// If a connection would exceed the limit, its held bytes are delivered with
    /// [`Cause::MemoryLimit`](crate::Cause::MemoryLimit), and the connection is closed after the
    /// reply. If the connection is paused or has unsent output, it is closed and its held bytes are
    /// not delivered.
    pub memory_limit: Option<usize>,
    /// Number of warm buffers: empty input buffers of `buffer_size` bytes that are allocated at
    /// start. A connection that holds a part of a request takes one. When unused buffers are freed
    /// (`reap_interval`), the number of warm buffers is not reduced below this value. Default: 0.
    ///
    /// There are two maximums. The value must not exceed `max_workers`. It must also not exceed
    /// 64 GiB divided by (`buffer_size` + 512 bytes).
    pub min_workers: usize,
    /// Maximum number of connections at a time. Default: `None`, which means no limit except the
    /// number of descriptors that the process may open. Maximum: 2^32 - 2.
    pub max_workers: Option<usize>,
    /// Idle deadline: a connection expires when no byte has been read or written for this time.
    /// Default: 3 s.
    pub clients_deadline: Duration,
    /// Total deadline of a request and of unsent output. A request has to be complete within this
    /// time after its first byte arrived. Output that the socket did not take at once has to be
    /// sent completely within this time. Traffic does not extend the deadline. Default: 30 s.
    /// `None` means no total deadline.
    pub request_deadline: Option<Duration>,
    /// Maximum duration of a pause ([`Conn::pause`](crate::Conn::pause)). It counts from the
    /// pause, or from the last byte that was moved since. When it has passed,
    /// [`incomplete`](crate::Handler::incomplete) is called with
    /// [`Cause::Unanswered`](crate::Cause::Unanswered) and without bytes, and the connection
    /// closes. Bytes that are held are dropped. Default: 30 s. `None` means no limit.
    ///
    /// If the peer of a paused connection has gone entirely, which the kernel reports as a hang-up
    /// or an error, the connection is read once. If nothing is held then, the connection closes at
    /// once. If bytes are held, they wait until the connection is resumed. A peer that has only
    /// closed its sending side is not gone. On TCP, a peer that has closed its socket looks the
    /// same until a reply is sent to it, so this deadline ends most of these pauses.
    pub paused_deadline: Option<Duration>,
    /// Maximum time until an outgoing connection is established. The
    /// [options](crate::ConnectOptions) of a connection can set another time. A change of this
    /// field applies only to connections that are started afterwards. Default: 3 s. Maximum: 49
    /// days.
    pub connect_deadline: Duration,
    /// Defines when a request is complete. Default: [`Framing::Filled`].
    pub framing: Framing,
    /// Maximum number of unsent output bytes of a connection. The output of one callback has the
    /// same limit. A connection that would exceed the limit is closed. Default: 1 MiB. Maximum:
    /// 4 GiB - 1.
    ///
    /// Replies to several requests may be gathered for one write. All gathered replies together may
    /// exceed the limit, but by no more than half of the limit and no more than 64 KiB.
    pub write_limit: usize,
    /// Interval at which unused buffers are freed. A warm buffer is freed if it was not used during
    /// the interval. The number of warm buffers is not reduced below `min_workers`. Default: 2 s.
    pub reap_interval: Duration,
    /// Maximum duration of a graceful stop. Default: `None`, which means the value of
    /// `clients_deadline`. If the value is zero, a stop aborts all connections in progress at once.
    pub stop_deadline: Option<Duration>,
    /// Maximum number of accepted connections from one peer at a time. A peer is one IPv4 address
    /// or one IPv6 /64 network. Default: `None`, which means no limit.
    ///
    /// A connection beyond the limit is accepted, sent a reply and closed, even with
    /// [`Overload::Pause`] and [`Overload::EvictIdle`]. With these two variants of
    /// [`overload`](Self::overload), the reply is [`ERROR_SERVER_BUSY`]. With [`Overload::Reject`],
    /// the reply is the one that this variant contains.
    /// [`Stats::refused_per_peer`](crate::Stats::refused_per_peer) counts these connections.
    ///
    /// The limit does not count connections of Unix sockets, connections that were
    /// [put](crate::Manager::put), [outgoing](crate::Manager::connect) connections, or connections
    /// that were accepted while there was no limit. It does not count connections from a trusted
    /// proxy ([`ListenOptions`](crate::ListenOptions)) either, because many clients share the
    /// address of the proxy. Lowering the limit closes no connection.
    pub max_per_peer: Option<usize>,
    /// Maximum number of requests per second of one connection. Default: `None`, which means no
    /// limit.
    ///
    /// A request above the limit is delayed, not dropped. Until it is delivered, nothing more is
    /// read from the connection, so that the peer sees back-pressure. The deadlines of the
    /// connection are suspended meanwhile. The delayed request keeps its buffer. A stop does not
    /// shorten the delay. [`Stats::throttled`](crate::Stats::throttled) counts delayed requests.
    ///
    /// The last body of a connection is not delayed if its cause is a deadline
    /// ([`Cause::Expired`](crate::Cause::Expired)) or `memory_limit`
    /// ([`Cause::MemoryLimit`](crate::Cause::MemoryLimit)).
    pub rate_limit: Option<RateLimit>,
    /// Defines what a listener does when all workers are taken. Default: [`Overload::Reject`] with
    /// [`ERROR_SERVER_BUSY`]. This field does not affect [`put`](crate::Manager::put), which fails
    /// at once and returns the socket.
    pub overload: Overload,
    /// Time for which a turn polls for events before it blocks. Default: zero, which means that a
    /// turn does not poll.
    ///
    /// While a turn polls, its thread does not sleep. An event that arrives during this time is
    /// served sooner, because a scheduler needs tens of microseconds to wake a thread. In exchange,
    /// a turn without events polls for the whole `spin` time, so an idle manager can use all of a
    /// core. Set `spin` only if the thread is pinned to a core (`taskset`) on which nothing else
    /// runs. Polling ends at the next deadline. A turn with a zero timeout does not poll.
    /// [`Stats::spun_ns`](crate::Stats::spun_ns) counts the time spent polling.
    pub spin: Duration,
    /// Interval at which [`Handler::tick`](crate::Handler::tick) is called. Default: `None`, which
    /// means never.
    pub tick: Option<Duration>,
    /// Logs a warning, at most once a second, if a callback takes longer than this. The measurement
    /// reads the clock twice per callback. Default: `None`, which means that callbacks are not
    /// timed.
    pub slow_callback: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            debug: false,
            buffer_size: BUFFER_SIZE,
            max_request: None,
            memory_limit: None,
            min_workers: 0,
            max_workers: None,
            clients_deadline: CLIENTS_DEADLINE,
            request_deadline: Some(REQUEST_DEADLINE),
            paused_deadline: Some(PAUSED_DEADLINE),
            connect_deadline: CONNECT_DEADLINE,
            framing: Framing::default(),
            write_limit: WRITE_LIMIT,
            reap_interval: REAP_INTERVAL,
            stop_deadline: None,
            max_per_peer: None,
            rate_limit: None,
            overload: Overload::Reject(Cow::Borrowed(ERROR_SERVER_BUSY.as_bytes())),
            spin: Duration::ZERO,
            tick: None,
            slow_callback: None,
        }
    }
}

impl Config {
    /// Checks the configuration.
    pub(crate) fn checked(self) -> Result<Self, ConfigError> {
        self.check_zeros()?;
        self.rate_limit.map_or(Ok(()), RateLimit::check)?;
        if let Some(max) = self.max_workers.filter(|&max| self.min_workers > max) {
            return Err(ConfigError::MinAboveMax { min: self.min_workers, max });
        }
        let workers_max = u32::MAX as usize - 1;
        let warm_max = WARM_BYTES_MAX / self.buffer_size.saturating_add(WORKER_BYTES);
        for (field, value, max) in [
            ("buffer_size", Some(self.buffer_size), BUFFER_SIZE_MAX),
            ("max_request", self.max_request, MAX_REQUEST_MAX),
            ("min_workers", Some(self.min_workers), warm_max),
            ("max_workers", self.max_workers, workers_max),
            ("write_limit", Some(self.write_limit), u32::MAX as usize),
        ] {
            if let Some(value) = value.filter(|&value| value > max) {
                return Err(ConfigError::TooLarge { field, value, max });
            }
        }
        let longest = if self.max_request.is_some() { "max_request" } else { "buffer_size" };
        for (field, value, other, least) in [
            ("max_request", self.max_request, "buffer_size", self.buffer_size),
            ("memory_limit", self.memory_limit, longest, self.longest()),
        ] {
            if let Some(value) = value.filter(|&value| value < least) {
                return Err(ConfigError::Below { field, value, other, least });
            }
        }
        Ok(self)
    }

    /// Returns an error if a field that must be greater than zero is zero.
    fn check_zeros(&self) -> Result<(), ConfigError> {
        let durations = [
            ("clients_deadline", Some(self.clients_deadline), DEFAULT),
            ("connect_deadline", Some(self.connect_deadline), DEFAULT),
            ("reap_interval", Some(self.reap_interval), DEFAULT),
            ("request_deadline", self.request_deadline, NO_LIMIT),
            ("paused_deadline", self.paused_deadline, NO_LIMIT),
            ("tick", self.tick, NO_LIMIT),
        ]
        .map(|(field, value, instead)| (field, value.map(|value| value.is_zero()), instead));
        let sizes = [
            ("buffer_size", Some(self.buffer_size), DEFAULT),
            ("write_limit", Some(self.write_limit), DEFAULT),
            ("max_workers", self.max_workers, NO_LIMIT),
            ("max_per_peer", self.max_per_peer, NO_LIMIT),
        ]
        .map(|(field, value, instead)| (field, value.map(|value| value == 0), instead));
        for (field, is_zero, instead) in durations.into_iter().chain(sizes) {
            if is_zero == Some(true) {
                return Err(ConfigError::Zero { field, instead });
            }
        }
        Ok(())
    }

    /// Returns the maximum size in bytes of a request, under every framing except `Filled` and
    /// `Drained`.
    pub(crate) fn longest(&self) -> usize {
        self.max_request.unwrap_or(self.buffer_size)
    }

    pub(crate) fn stop_time(&self) -> Duration {
        self.stop_deadline.unwrap_or(self.clients_deadline)
    }
}

/// Maximum size in bytes of the memory that `min_workers` allocates at start. Without this limit, a
/// value that is too large would abort the process instead of returning an error.
const WARM_BYTES_MAX: usize = 64 << 30;

/// Number of bytes assumed for a worker, not counting its warm buffer, when the maximum of
/// `min_workers` is calculated.
const WORKER_BYTES: usize = 512;

/// What to set instead of zero in a field that cannot be turned off.
const DEFAULT: &str = "for the default, do not set it";
/// What to set instead of zero in an optional field.
const NO_LIMIT: &str = "to turn it off, set None";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_an_error_in_every_field_in_which_it_makes_no_sense() {
        let (new, zero) = (Config::new, Duration::ZERO);
        for (config, field) in [
            (new().buffer_size(0), "buffer_size"),
            (new().write_limit(0), "write_limit"),
            (new().clients_deadline(zero), "clients_deadline"),
            (new().connect_deadline(zero), "connect_deadline"),
            (new().reap_interval(zero), "reap_interval"),
            (new().request_deadline(zero), "request_deadline"),
            (new().paused_deadline(zero), "paused_deadline"),
            (new().tick(zero), "tick"),
            (new().max_workers(0), "max_workers"),
            (new().max_per_peer(0), "max_per_peer"),
            (new().max_request(0), "max_request"),
            (new().memory_limit(0), "memory_limit"),
        ] {
            let error = config.checked().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field} is 0 but ")), "{error}");
        }
        let natural = new().min_workers(0).stop_deadline(zero).spin(zero);
        assert_eq!(natural.checked().unwrap().stop_time(), zero);
        assert_eq!(
            new().max_workers(0).checked().unwrap_err().to_string(),
            "max_workers is 0 but must be greater than 0; to turn it off, set None"
        );
    }

    #[test]
    fn none_turns_every_optional_field_off() {
        let off = Config::new()
            .max_request(None)
            .memory_limit(None)
            .max_workers(None)
            .request_deadline(None)
            .paused_deadline(None)
            .stop_deadline(None)
            .max_per_peer(None)
            .rate_limit(None)
            .tick(None)
            .slow_callback(None);
        let checked = off.checked().unwrap();
        assert_eq!((checked.longest(), checked.stop_time()), (5120, Duration::from_secs(3)));
    }

    #[test]
    fn config_errors_contain_the_value_and_the_limit() {
        let error = Config::new().min_workers(7).max_workers(3).checked().unwrap_err();
        assert_eq!(error, ConfigError::MinAboveMax { min: 7, max: 3 });
        let error = Config::new().buffer_size(usize::MAX).checked().unwrap_err();
        assert!(error.to_string().contains(&usize::MAX.to_string()), "{error}");
        assert!(error.to_string().contains("16777216"), "{error}");
        let error = Config::new().min_workers(usize::MAX).checked().unwrap_err();
        assert!(error.to_string().starts_with("min_workers is "), "{error}");
        for limit in [RateLimit::per_second(0), RateLimit::per_second(5).burst(0)] {
            let error = Config::new().rate_limit(limit).checked().unwrap_err();
            assert!(error.to_string().contains(" is 0 but must be greater than 0"), "{error}");
        }
        let error = Config::new().rate_limit(RateLimit::per_second(u32::MAX)).checked();
        assert!(error.unwrap_err().to_string().contains("at most 1000000"));
        assert!(Config::new().rate_limit(RateLimit::per_second(1_000_000)).checked().is_ok());
        assert!(Config::new().min_workers(7).checked().is_ok(), "no maximum");
        assert!(Config::new().buffer_size(16 << 20).checked().is_ok());
    }

    #[test]
    fn max_request_and_memory_limit_must_not_be_too_small() {
        let refused = |config: Config| config.checked().unwrap_err().to_string();
        assert_eq!(
            refused(Config::new().max_request(5119)),
            "max_request is 5119 but buffer_size is 5120: raise max_request or lower buffer_size"
        );
        assert_eq!(
            refused(Config::new().memory_limit(5119)),
            "memory_limit is 5119 but buffer_size is 5120: raise memory_limit or lower buffer_size"
        );
        let large = Config::new().max_request(1 << 20);
        assert_eq!(
            refused(large.clone().memory_limit((1 << 20) - 1)),
            "memory_limit is 1048575 but max_request is 1048576: raise memory_limit or lower \
             max_request"
        );
        assert!(large.memory_limit(1 << 20).checked().is_ok());
        assert!(Config::new().max_request(5120).memory_limit(5120).checked().is_ok());
        assert!(Config::new().max_request(1 << 30).checked().is_ok());
        assert!(refused(Config::new().max_request((1 << 30) + 1)).contains("1073741824"));
    }

    /// Regression test: four billion warm buffers of one byte each passed the check, and the start
    /// aborted the process.
    #[test]
    fn min_workers_is_limited_even_with_tiny_buffers() {
        let tiny = Config::new().buffer_size(1);
        let max = (64 << 30) / (1 + 512);
        let refused = ConfigError::TooLarge { field: "min_workers", value: max + 1, max };
        assert_eq!(tiny.clone().min_workers(max + 1).checked().unwrap_err(), refused);
        assert!(tiny.min_workers(max).checked().is_ok());
    }
}
