//! Config: every knob, its default, and what makes a configuration invalid.
//!
//! A configuration is a plain value. It is checked as a whole, so that a wrong one changes
//! nothing; what zeros stand for is filled in at the same time. It knows nothing of the loop.

mod invalid;
mod overload;
mod rate;

use std::borrow::Cow;
use std::time::Duration;

use crate::framing::Framing;
pub use invalid::ConfigError;
pub use overload::Overload;
pub use rate::RateLimit;

/// What refused clients are told by default, and what the Go package this one succeeds says.
pub const ERROR_SERVER_BUSY: &str = "ERROR_SERVER_BUSY";

const BUFFER_SIZE: usize = 5120;
const BUFFER_SIZE_MAX: usize = 16 << 20;
const MAX_REQUEST_MAX: usize = 1 << 30;
const WRITE_LIMIT: usize = 1 << 20;
const CLIENTS_DEADLINE: Duration = Duration::from_secs(3);
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
const REAP_INTERVAL: Duration = Duration::from_secs(2);

/// How a [`Manager`](crate::Manager) behaves. Start from [`Config::new`] and chain setters.
///
/// Durations have no upper bound; what is too far for the clock never comes.
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
/// assert_eq!(config.max_workers, 10);
/// assert_eq!(config.buffer_size, 5120);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Log what happens to each connection through `log`, at level `debug`. Default: false.
    pub debug: bool,
    /// Bytes a worker's buffer holds, and so the longest body, unless `max_request` is more.
    /// Default, and what 0 means: 5120. At most 16 MiB.
    pub buffer_size: usize,
    /// Bytes of the longest request, with its delimiter or prefix, under a framing that finds
    /// requests: for one that does not fit in `buffer_size` the buffer doubles as bytes arrive,
    /// whatever length they announce, and is freed when the request is done. All of it has to come
    /// within `request_deadline`. A longer one is [`Cause::Overlong`](crate::Cause::Overlong).
    /// Under [`Framing::Filled`] and [`Framing::Drained`] it has no effect: there a body is at most
    /// `buffer_size` long. Default, and what 0 means: `buffer_size`. At most 1 GiB.
    pub max_request: usize,
    /// Bytes that the buffers of all connections together may take, counted by their capacity: each
    /// that keeps a part of a request has one, of `buffer_size` or what it has grown to
    /// ([`Stats::bytes_held`](crate::Stats::bytes_held)). Who would need more is called with
    /// [`Cause::MemoryLimit`](crate::Cause::MemoryLimit) and closed after the reply; one that is
    /// paused or owes a reply is closed at once. A request that comes whole and fits in
    /// `buffer_size` takes nothing, so small ones are served at any time; warm buffers and unsent
    /// replies (`write_limit`) do not count. At least `max_request`. Default: 0, no limit.
    pub memory_limit: usize,
    /// Empty buffers kept warm for the next connections. Default: 0. At most 64 GiB of them, with
    /// 512 bytes more for each.
    pub min_workers: usize,
    /// Connections at a time. Default: 0, no maximum but the process's descriptors. At most
    /// 2^32 - 2.
    pub max_workers: usize,
    /// Idle deadline: how long a connection may go without moving a byte in either direction.
    /// Default, and what zero means: 3 s.
    pub clients_deadline: Duration,
    /// Total deadline: how long from the first byte of a request to its callback, and how long
    /// a reply that had to wait may take to go out; no traffic extends it. Default: 30 s. Zero:
    /// no such deadline.
    pub request_deadline: Duration,
    /// How long a connection that is to begin here may take until it is there, unless its
    /// [options](crate::ConnectOptions) say otherwise; a change is for those begun from then on.
    /// Default, and what zero means: 3 s.
    pub connect_deadline: Duration,
    /// When a request is complete. Default: [`Framing::Filled`].
    pub framing: Framing,
    /// Bytes of reply a connection may have unsent, and so the longest reply of one callback; a
    /// connection that would have more is closed. Replies to requests that came together may add
    /// half of it, at most 64 KiB. Default, and what 0 means: 1 MiB. At most 4 GiB - 1.
    pub write_limit: usize,
    /// How often buffers above `min_workers` that were not needed since the last time are freed.
    /// Default, and what zero means: 2 s.
    pub reap_interval: Duration,
    /// How long a graceful stop may take. Default: `None`, as long as `clients_deadline`.
    /// Zero: what is in progress is aborted at once.
    pub stop_deadline: Option<Duration>,
    /// Connections at a time that a listener accepts of one IP address; of IPv6, of one /64. One
    /// more is told what one is told when all workers are taken, and closed, whatever
    /// [`overload`](Self::overload) says; [`Stats::refused_per_peer`](crate::Stats::refused_per_peer) counts it.
    /// Those of Unix sockets and those that were put are not counted, nor those accepted while
    /// this was 0; lowering it cuts off nobody. Behind a balancer all come from one address;
    /// those whose header says who the client is ([`ListenOptions`](crate::ListenOptions)) are not
    /// counted, for it was the balancer that let them in.
    /// Default: 0, no limit.
    pub max_per_peer: usize,
    /// How many requests a second a connection may make. One that comes too early is not lost: it is
    /// held, nothing more is read meanwhile, so that its peer feels it, and the deadlines stand
    /// still. Only a last body never waits that a deadline or `memory_limit` delivers
    /// ([`Cause::Expired`](crate::Cause::Expired), [`Cause::MemoryLimit`](crate::Cause::MemoryLimit)):
    /// a request that is held takes its buffer meanwhile. A stop does not hurry it. [`Stats::throttled`](crate::Stats::throttled) counts. Default: `None`.
    pub rate_limit: Option<RateLimit>,
    /// What a listener does when all workers are taken. Default: reject with
    /// [`ERROR_SERVER_BUSY`]. It is not for `put`, which says busy at once: who calls it has the
    /// socket, and decides.
    pub overload: Overload,
    /// How long to poll before the thread gives up its core: a request that comes meanwhile is
    /// served without waking a sleeping thread, which takes a scheduler tens of microseconds. A turn
    /// with nothing to do then costs that much CPU, up to all of a core; so it is for a
    /// service that owns one, pinned to it (`taskset`), with nothing else that wants to run there.
    /// It does nothing for a turn that may not wait, nor beyond the next deadline. Default, and
    /// what zero means: never. [`Stats::spun_ns`](crate::Stats::spun_ns) counts it.
    pub spin: Duration,
    /// How often [`Handler::tick`](crate::Handler::tick) is called. Default, and what zero means:
    /// never.
    pub tick: Duration,
    /// Warn, at most once a second, of a callback that took longer; costs two clock readings a
    /// callback. Default: `None`, callbacks are not timed.
    pub slow_callback: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            debug: false,
            buffer_size: BUFFER_SIZE,
            max_request: 0,
            memory_limit: 0,
            min_workers: 0,
            max_workers: 0,
            clients_deadline: CLIENTS_DEADLINE,
            request_deadline: REQUEST_DEADLINE,
            connect_deadline: CONNECT_DEADLINE,
            framing: Framing::default(),
            write_limit: WRITE_LIMIT,
            reap_interval: REAP_INTERVAL,
            stop_deadline: None,
            max_per_peer: 0,
            rate_limit: None,
            overload: Overload::Reject(Cow::Borrowed(ERROR_SERVER_BUSY.as_bytes())),
            spin: Duration::ZERO,
            tick: Duration::ZERO,
            slow_callback: None,
        }
    }
}

/// The setters: each returns the configuration with one field changed.
impl Config {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`debug`](Self::debug).
    #[must_use]
    pub fn debug(mut self, debug: bool) -> Self {
        self.debug = debug;
        self
    }

    /// Sets [`buffer_size`](Self::buffer_size), in bytes.
    #[must_use]
    pub fn buffer_size(mut self, bytes: usize) -> Self {
        self.buffer_size = bytes;
        self
    }

    /// Sets [`max_request`](Self::max_request), in bytes.
    #[must_use]
    pub fn max_request(mut self, bytes: usize) -> Self {
        self.max_request = bytes;
        self
    }

    /// Sets [`memory_limit`](Self::memory_limit), in bytes.
    #[must_use]
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// Sets [`min_workers`](Self::min_workers).
    #[must_use]
    pub fn min_workers(mut self, workers: usize) -> Self {
        self.min_workers = workers;
        self
    }

    /// Sets [`max_workers`](Self::max_workers).
    #[must_use]
    pub fn max_workers(mut self, workers: usize) -> Self {
        self.max_workers = workers;
        self
    }

    /// Sets [`clients_deadline`](Self::clients_deadline).
    #[must_use]
    pub fn clients_deadline(mut self, deadline: Duration) -> Self {
        self.clients_deadline = deadline;
        self
    }

    /// Sets [`request_deadline`](Self::request_deadline).
    #[must_use]
    pub fn request_deadline(mut self, deadline: Duration) -> Self {
        self.request_deadline = deadline;
        self
    }

    /// Sets [`connect_deadline`](Self::connect_deadline).
    #[must_use]
    pub fn connect_deadline(mut self, deadline: Duration) -> Self {
        self.connect_deadline = deadline;
        self
    }

    /// Sets [`framing`](Self::framing).
    #[must_use]
    pub fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// Sets [`write_limit`](Self::write_limit), in bytes.
    #[must_use]
    pub fn write_limit(mut self, bytes: usize) -> Self {
        self.write_limit = bytes;
        self
    }

    /// Sets [`reap_interval`](Self::reap_interval).
    #[must_use]
    pub fn reap_interval(mut self, interval: Duration) -> Self {
        self.reap_interval = interval;
        self
    }

    /// Sets [`stop_deadline`](Self::stop_deadline).
    #[must_use]
    pub fn stop_deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.stop_deadline = deadline.into();
        self
    }

    /// Sets [`max_per_peer`](Self::max_per_peer).
    #[must_use]
    pub fn max_per_peer(mut self, connections: usize) -> Self {
        self.max_per_peer = connections;
        self
    }

    /// Sets [`rate_limit`](Self::rate_limit).
    #[must_use]
    pub fn rate_limit(mut self, limit: impl Into<Option<RateLimit>>) -> Self {
        self.rate_limit = limit.into();
        self
    }

    /// Sets [`overload`](Self::overload).
    #[must_use]
    pub fn overload(mut self, overload: Overload) -> Self {
        self.overload = overload;
        self
    }

    /// Sets [`spin`](Self::spin).
    #[must_use]
    pub fn spin(mut self, spin: Duration) -> Self {
        self.spin = spin;
        self
    }

    /// Sets [`tick`](Self::tick).
    #[must_use]
    pub fn tick(mut self, interval: Duration) -> Self {
        self.tick = interval;
        self
    }

    /// Sets [`slow_callback`](Self::slow_callback).
    #[must_use]
    pub fn slow_callback(mut self, longer_than: impl Into<Option<Duration>>) -> Self {
        self.slow_callback = longer_than.into();
        self
    }
}

impl Config {
    /// The configuration that takes effect: zeros replaced by the defaults they stand for.
    pub(crate) fn checked(mut self) -> Result<Self, ConfigError> {
        let workers = (self.min_workers, self.max_workers);
        if workers.1 > 0 && workers.0 > workers.1 {
            return Err(ConfigError::MinAboveMax { min: workers.0, max: workers.1 });
        }
        self.rate_limit.map_or(Ok(()), RateLimit::check)?;
        or_default(&mut self.buffer_size, BUFFER_SIZE);
        or_default(&mut self.write_limit, WRITE_LIMIT);
        or_default(&mut self.clients_deadline, CLIENTS_DEADLINE);
        or_default(&mut self.connect_deadline, CONNECT_DEADLINE);
        or_default(&mut self.reap_interval, REAP_INTERVAL);
        let most_workers = u32::MAX as usize - 1;
        let most_warm = WARM_BYTES_MAX / self.buffer_size.saturating_add(WORKER_BYTES);
        for (field, value, max) in [
            ("buffer_size", self.buffer_size, BUFFER_SIZE_MAX),
            ("max_request", self.max_request, MAX_REQUEST_MAX),
            ("min_workers", self.min_workers, most_warm),
            ("max_workers", self.max_workers, most_workers),
            ("write_limit", self.write_limit, u32::MAX as usize),
        ] {
            if value > max {
                return Err(ConfigError::TooLarge { field, value, max });
            }
        }
        let longest = if self.max_request > 0 { "max_request" } else { "buffer_size" };
        for (field, value, other, least) in [
            ("max_request", self.max_request, "buffer_size", self.buffer_size),
            ("memory_limit", self.memory_limit, longest, self.longest()),
        ] {
            if value > 0 && value < least {
                return Err(ConfigError::Below { field, value, other, least });
            }
        }
        Ok(self)
    }

    /// Bytes of the longest request under a framing that finds requests.
    pub(crate) fn longest(&self) -> usize {
        self.max_request.max(self.buffer_size)
    }

    pub(crate) fn stop_time(&self) -> Duration {
        self.stop_deadline.unwrap_or(self.clients_deadline)
    }
}

/// Warm workers are allocated at start: a bound on them in bytes turns a slip of the pen into
/// an error rather than an abort.
const WARM_BYTES_MAX: usize = 64 << 30;

/// What a warm worker costs beside its buffer: room is reserved for its connection.
const WORKER_BYTES: usize = 512;

fn or_default<T: Default + PartialEq>(value: &mut T, default: T) {
    if *value == T::default() {
        *value = default;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_stand_for_the_documented_defaults() {
        let zeros = Config::new()
            .buffer_size(0)
            .write_limit(0)
            .clients_deadline(Duration::ZERO)
            .connect_deadline(Duration::ZERO)
            .reap_interval(Duration::ZERO)
            .request_deadline(Duration::ZERO);
        let checked = zeros.checked().unwrap();
        assert_eq!(checked.buffer_size, 5120);
        assert_eq!(checked.write_limit, 1 << 20);
        assert_eq!(checked.clients_deadline, Duration::from_secs(3));
        assert_eq!(checked.connect_deadline, Duration::from_secs(3));
        assert_eq!(checked.reap_interval, Duration::from_secs(2));
        assert_eq!(checked.request_deadline, Duration::ZERO, "zero turns this one off");
        assert_eq!(checked.stop_time(), Duration::from_secs(3));
    }

    #[test]
    fn errors_name_both_numbers() {
        let error = Config::new().min_workers(7).max_workers(3).checked().unwrap_err();
        assert_eq!(error, ConfigError::MinAboveMax { min: 7, max: 3 });
        let error = Config::new().buffer_size(usize::MAX).checked().unwrap_err();
        assert!(error.to_string().contains(&usize::MAX.to_string()), "{error}");
        assert!(error.to_string().contains("16777216"), "{error}");
        let error = Config::new().min_workers(usize::MAX).checked().unwrap_err();
        assert!(error.to_string().starts_with("min_workers is "), "{error}");
        for limit in [RateLimit::per_second(0), RateLimit::per_second(5).burst(0)] {
            let error = Config::new().rate_limit(limit).checked().unwrap_err();
            assert!(error.to_string().contains(" is 0 but must be at least 1"), "{error}");
        }
        let error = Config::new().rate_limit(RateLimit::per_second(u32::MAX)).checked();
        assert!(error.unwrap_err().to_string().contains("at most 1000000"));
        assert!(Config::new().rate_limit(RateLimit::per_second(1_000_000)).checked().is_ok());
        assert!(Config::new().min_workers(7).checked().is_ok(), "no maximum");
        assert!(Config::new().buffer_size(16 << 20).checked().is_ok());
    }

    #[test]
    fn a_request_fits_in_what_it_has_to_fit_in() {
        let refused = |config: Config| config.checked().unwrap_err().to_string();
        assert_eq!(
            refused(Config::new().max_request(5119)),
            "max_request is 5119 but buffer_size is 5120: raise the one or lower the other"
        );
        assert_eq!(
            refused(Config::new().memory_limit(5119)),
            "memory_limit is 5119 but buffer_size is 5120: raise the one or lower the other"
        );
        let large = Config::new().max_request(1 << 20);
        assert_eq!(
            refused(large.clone().memory_limit((1 << 20) - 1)),
            "memory_limit is 1048575 but max_request is 1048576: raise the one or lower the other"
        );
        assert!(large.memory_limit(1 << 20).checked().is_ok());
        assert!(Config::new().max_request(5120).memory_limit(5120).checked().is_ok());
        assert!(Config::new().max_request(1 << 30).checked().is_ok());
        assert!(refused(Config::new().max_request((1 << 30) + 1)).contains("1073741824"));
    }

    /// Four billion warm buffers of a byte each were accepted once, and start aborted.
    #[test]
    fn warm_workers_are_bounded_however_small_their_buffers() {
        let tiny = Config::new().buffer_size(1);
        let max = (64 << 30) / (1 + 512);
        let refused = ConfigError::TooLarge { field: "min_workers", value: max + 1, max };
        assert_eq!(tiny.clone().min_workers(max + 1).checked().unwrap_err(), refused);
        assert!(tiny.min_workers(max).checked().is_ok());
    }
}
