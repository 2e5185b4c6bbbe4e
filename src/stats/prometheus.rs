//! The counters in the text exposition format of Prometheus, version 0.0.4.
//!
//! Each family has a `HELP` and a `TYPE` line, followed by its samples. The HTTP endpoint that
//! serves the text must send `Content-Type: text/plain; version=0.0.4`.

use std::fmt;

use super::Stats;
use crate::conn_state::{Cause, CloseReason};

/// The type of a family.
#[derive(Clone, Copy)]
enum Kind {
    /// The value goes up and down.
    Gauge,
    /// The value only grows.
    Counter,
}

/// Label values for causes and reasons. They are part of the stable interface, unlike the texts
/// that `Display` writes.
const CAUSES: [(Cause, &str); 8] = [
    (Cause::Drained, "drained"),
    (Cause::Framed, "framed"),
    (Cause::Full, "full"),
    (Cause::Eof, "eof"),
    (Cause::Expired, "expired"),
    (Cause::MemoryLimit, "memory_limit"),
    (Cause::Overlong, "overlong"),
    (Cause::Unanswered, "unanswered"),
];

const REASONS: [(CloseReason, &str); CloseReason::CLASSES] = [
    (CloseReason::Eof, "eof"),
    (CloseReason::Expired, "expired"),
    (CloseReason::WriteStalled, "write_stalled"),
    (CloseReason::WriteLimit, "write_limit"),
    (CloseReason::Overlong, "overlong"),
    (CloseReason::Invalid, "invalid"),
    (CloseReason::Requested, "requested"),
    (CloseReason::Aborted, "aborted"),
    (CloseReason::Failed, "failed"),
    (CloseReason::Panicked, "panicked"),
    (CloseReason::Reset, "reset"),
    (CloseReason::Io, "io"),
    (CloseReason::Stopped, "stopped"),
    (CloseReason::MemoryLimit, "memory_limit"),
    (CloseReason::BadHeader, "bad_header"),
    (CloseReason::Evicted, "evicted"),
    (CloseReason::Unreachable, "unreachable"),
];

impl Stats {
    /// Returns the counters in the text exposition format of Prometheus, version 0.0.4.
    ///
    /// All names begin with `pool_manager_`. The names, and the values of the labels `cause` and
    /// `reason`, are stable. Times are in seconds. The text has about 6 KB. Serve it with
    /// `Content-Type: text/plain; version=0.0.4`.
    ///
    /// ```
    /// use pool_manager::Stats;
    /// let text = Stats::default().prometheus().to_string();
    /// assert!(text.contains("# TYPE pool_manager_connections gauge\n"));
    /// assert!(text.contains("\npool_manager_connections 0\n"));
    /// assert!(text.contains("pool_manager_requests_total{cause=\"framed\"} 0\n"));
    /// ```
    #[must_use]
    pub fn prometheus(&self) -> impl fmt::Display + fmt::Debug + use<> {
        Prometheus(*self)
    }
}

#[derive(Debug)]
struct Prometheus(Stats);

impl fmt::Display for Prometheus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = &self.0;
        gauges(f, stats)?;
        counters(f, stats)?;
        head(f, Kind::Counter, "requests_total", "Requests delivered, by cause.")?;
        for (cause, word) in CAUSES.iter().filter(|(cause, _)| Cause::REQUESTS.contains(cause)) {
            let count = stats.requests(*cause);
            writeln!(f, "pool_manager_requests_total{{cause=\"{word}\"}} {count}")?;
        }
        head(f, Kind::Counter, "incomplete_total", "Requests that stayed incomplete, by cause.")?;
        for (cause, word) in CAUSES.iter().filter(|(cause, _)| Cause::INCOMPLETE.contains(cause)) {
            let count = stats.incomplete(*cause);
            writeln!(f, "pool_manager_incomplete_total{{cause=\"{word}\"}} {count}")?;
        }
        head(f, Kind::Counter, "closed_total", "Connections that ended, by reason.")?;
        for (reason, word) in REASONS {
            let count = stats.closed(reason);
            writeln!(f, "pool_manager_closed_total{{reason=\"{word}\"}} {count}")?;
        }
        Ok(())
    }
}

fn gauges(f: &mut fmt::Formatter<'_>, stats: &Stats) -> fmt::Result {
    let longest = stats.longest_callback.as_secs_f64();
    for (name, value, help) in [
        ("connections", stats.live, "Current connections."),
        ("connections_peak", stats.peak, "Maximum number of connections at a time."),
        ("lingering", stats.lingering, "Closed connections that are still read."),
        ("held_bytes", stats.bytes_held, "Bytes of buffers kept for incomplete requests."),
        ("spare_buffers", stats.spare, "Current warm, empty buffers."),
    ] {
        family(f, Kind::Gauge, name, help, value)?;
    }
    let help = "The longest callback, if callbacks are timed.";
    family(f, Kind::Gauge, "longest_callback_seconds", help, longest)
}

fn counters(f: &mut fmt::Formatter<'_>, stats: &Stats) -> fmt::Result {
    for (name, value, help) in [
        ("accepted_total", stats.accepted, "Connections that listeners accepted."),
        ("connects_total", stats.connects, "Outgoing connections."),
        ("connected_total", stats.connected, "Outgoing connections that were established."),
        ("put_total", stats.put, "Connections that got a worker."),
        ("busy_total", stats.busy, "Connections refused because all workers were taken."),
        (
            "refused_per_peer_total",
            stats.refused_per_peer,
            "Connections refused because their peer had too many connections.",
        ),
        ("proxied_total", stats.proxied, "Connections that began with a PROXY header."),
        (
            "admit_failures_total",
            stats.admit_failures,
            "Connections closed because they could not be registered or wrapped.",
        ),
        ("read_bytes_total", stats.bytes_in, "Bytes read."),
        ("written_bytes_total", stats.bytes_out, "Bytes written."),
        ("dropped_bytes_total", stats.bytes_dropped, "Bytes read that were not delivered."),
        ("unsent_bytes_total", stats.bytes_unsent, "Bytes of replies that were not sent."),
        ("turns_total", stats.turns, "Turns of the loop."),
        ("ticks_total", stats.ticks, "Calls of the handler's tick."),
        ("waits_total", stats.waits, "Waits for readiness."),
        ("reads_total", stats.reads, "Reads from connections."),
        ("writes_total", stats.writes, "Writes to connections."),
        ("accepts_total", stats.accepts, "Calls of accept, successful or not."),
        (
            "accept_errors_total",
            stats.accept_errors,
            "Calls of accept that failed for a connection.",
        ),
        ("fd_exhausted_total", stats.fd_exhausted, "Pauses because descriptors ran out."),
        ("events_total", stats.events, "Readiness events."),
        ("stale_events_total", stats.stale_events, "Events for closed connections."),
        ("commands_total", stats.commands, "Commands from callbacks and handles."),
        ("stale_commands_total", stats.stale_commands, "Commands for closed connections."),
        ("throttled_total", stats.throttled, "Requests delayed by the rate limit."),
        ("expired_total", stats.expired, "Deadlines that passed."),
        ("buffers_allocated_total", stats.buffers_allocated, "Buffers allocated."),
        ("slow_callbacks_total", stats.slow_callbacks, "Callbacks slower than slow_callback."),
        ("panics_total", stats.panics, "Panics of callbacks."),
    ] {
        family(f, Kind::Counter, name, help, value)?;
    }
    let spun = std::time::Duration::from_nanos(stats.spun_ns).as_secs_f64();
    family(f, Kind::Counter, "spun_seconds_total", "Time spent polling before a wait.", spun)
}

/// Writes a family of one sample without labels.
fn family(
    f: &mut fmt::Formatter<'_>,
    kind: Kind,
    name: &str,
    help: &str,
    value: impl fmt::Display,
) -> fmt::Result {
    head(f, kind, name, help)?;
    writeln!(f, "pool_manager_{name} {value}")
}

fn head(f: &mut fmt::Formatter<'_>, kind: Kind, name: &str, help: &str) -> fmt::Result {
    let kind = match kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
    };
    writeln!(f, "# HELP pool_manager_{name} {help}\n# TYPE pool_manager_{name} {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    fn is_name(name: &str) -> bool {
        let inner = |letter: char| letter.is_ascii_lowercase() || letter == '_';
        name.starts_with("pool_manager_") && name.chars().all(inner)
    }

    /// Checks every line against the grammar of the format. Each head occurs once, before its
    /// samples. Names and labels have valid letters. Values are numbers. The text ends with a
    /// newline.
    #[test]
    fn every_line_is_well_formed_and_every_family_has_its_head() {
        let text = Stats::default().prometheus().to_string();
        assert!(text.ends_with('\n') && !text.contains("\n\n") && text.is_ascii());
        let (mut families, mut series, mut current) = (BTreeSet::new(), BTreeSet::new(), "");
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(head) = line.strip_prefix("# HELP ") {
                let (name, help) = head.split_once(' ').expect("a name and a text");
                assert!(is_name(name) && families.insert(name), "{name}");
                assert!(help.ends_with('.') && !help.contains('\\'), "{help}");
                let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE "));
                let (typed, kind) = kind.and_then(|line| line.split_once(' ')).expect("a type");
                assert_eq!((typed, kind == "counter"), (name, name.ends_with("_total")), "{line}");
                assert!(["counter", "gauge"].contains(&kind), "{kind}");
                current = name;
                continue;
            }
            let (key, value) = line.rsplit_once(' ').expect("a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(key), "{key} appears twice");
            let (name, labels) = key.split_once('{').unwrap_or((key, "x=\"x\"}"));
            assert_eq!(name, current, "a sample must follow its head");
            let (label, value) = labels.split_once("=\"").expect("a label");
            assert!(label.chars().all(|letter| letter.is_ascii_lowercase()), "{line}");
            let word = value.strip_suffix("\"}").expect("a closing brace");
            assert!(word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_'));
        }
        assert!(families.len() > 30 && series.len() >= families.len() + 17, "{text}");
    }

    #[test]
    fn samples_show_the_values_of_the_counters() {
        let mut stats = Stats {
            live: 3,
            bytes_in: u64::MAX,
            spun_ns: 1_500_000_000,
            longest_callback: Duration::from_millis(250),
            ..Stats::default()
        };
        stats.count_request(Cause::Framed);
        stats.count_incomplete(Cause::Overlong);
        for (count, (reason, _)) in REASONS.into_iter().enumerate() {
            (0..=count).for_each(|_| stats.count_closed(reason));
        }
        let text = stats.prometheus().to_string();
        for line in [
            "pool_manager_connections 3",
            "pool_manager_read_bytes_total 18446744073709551615",
            "pool_manager_spun_seconds_total 1.5",
            "pool_manager_longest_callback_seconds 0.25",
            "pool_manager_requests_total{cause=\"framed\"} 1",
            "pool_manager_incomplete_total{cause=\"overlong\"} 1",
            "pool_manager_requests_total{cause=\"full\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing: {text}");
        }
        for (count, (_, word)) in REASONS.into_iter().enumerate() {
            let line = format!("pool_manager_closed_total{{reason=\"{word}\"}} {}", count + 1);
            assert!(text.lines().any(|found| found == line), "{line} is missing: {text}");
        }
    }

    #[test]
    fn every_counter_has_its_own_name() {
        let stats = Stats {
            live: 101,
            peak: 102,
            lingering: 103,
            bytes_held: 104,
            spare: 105,
            accepted: 106,
            put: 107,
            busy: 108,
            refused_per_peer: 109,
            proxied: 110,
            admit_failures: 111,
            bytes_in: 112,
            bytes_out: 113,
            bytes_dropped: 114,
            bytes_unsent: 115,
            turns: 116,
            ticks: 117,
            waits: 118,
            reads: 119,
            writes: 120,
            accepts: 121,
            accept_errors: 122,
            fd_exhausted: 123,
            events: 124,
            stale_events: 125,
            commands: 126,
            stale_commands: 127,
            throttled: 128,
            expired: 129,
            buffers_allocated: 130,
            slow_callbacks: 131,
            panics: 132,
            ..Stats::default()
        };
        let names = "connections connections_peak lingering held_bytes spare_buffers \
            accepted_total put_total busy_total refused_per_peer_total proxied_total \
            admit_failures_total read_bytes_total \
            written_bytes_total dropped_bytes_total unsent_bytes_total turns_total ticks_total \
            waits_total reads_total writes_total accepts_total accept_errors_total \
            fd_exhausted_total \
            events_total stale_events_total commands_total stale_commands_total throttled_total \
            expired_total buffers_allocated_total slow_callbacks_total panics_total";
        let text = stats.prometheus().to_string();
        for (value, name) in (101..=132).zip(names.split(' ')) {
            let line = format!("pool_manager_{name} {value}");
            assert!(text.lines().any(|found| found == line), "{line} is missing: {text}");
        }
        assert_eq!(names.split(' ').count(), 32);
    }

    /// Compares the number of fields of `Stats` with the number of samples, so that a new counter
    /// cannot be forgotten.
    #[test]
    fn every_counter_is_shown() {
        let fields = format!("{:#?}", Stats::default());
        let fields =
            fields.lines().filter(|line| line.starts_with("    ") && !line[4..].starts_with(' '));
        let plain = fields.filter(|line| line.ends_with(','));
        let text = Stats::default().prometheus().to_string();
        let shown = text.lines().filter(|line| !line.starts_with('#') && !line.contains('{'));
        assert_eq!(plain.filter(|line| !line.contains(']')).count(), shown.count());
    }
}
