//! Cases: the kinds of traffic that are measured. The driver passes the name of a case to its
//! server.

/// One kind of traffic, identical in every round.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Open connections.
    pub(crate) live: usize,
    /// Connections that send in one round. Rounds take the connections in rotation.
    pub(crate) active: usize,
    /// Requests that a connection sends with one write.
    pub(crate) depth: usize,
    /// Measured rounds.
    pub(crate) rounds: u64,
    /// Upper limits of the figures.
    pub(crate) bars: Bars,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Echoes 64 bytes, with `Framing::Drained`.
    Echo,
    /// Echoes lines of 64 bytes, including the newline, with `Framing::Delimited`.
    Lines,
    /// Accept, one echo, close. Figures are per connection.
    Churn,
}

/// Upper limits of the figures, independent of the committed figures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bars {
    pub(crate) instructions: Option<f64>,
    pub(crate) allocations: Option<f64>,
    pub(crate) calls: Option<f64>,
}

/// Bytes per request, including its newline.
pub(crate) const SIZE: usize = 64;

/// The number of connections per round of [`Kind::Churn`]. The other cases open their connections
/// in batches of this size. It is smaller than the backlog of the listener.
pub(crate) const BATCH: usize = 64;

/// A warm request allocates nothing.
const WARM: Bars = Bars { instructions: None, allocations: Some(0.0), calls: None };

const ECHO: Case = Case {
    name: "echo-1",
    kind: Kind::Echo,
    live: 1,
    active: 1,
    depth: 1,
    rounds: 1_000,
    bars: Bars { calls: Some(3.0), ..WARM },
};

const ECHO_64: Case = Case {
    name: "echo-64",
    live: 64,
    active: 64,
    rounds: 100,
    bars: Bars { calls: Some(2.05), ..WARM },
    ..ECHO
};

pub(crate) static CASES: [Case; 8] = [
    ECHO,
    ECHO_64,
    // As echo-64, but with 10,000 open connections. In the first case, 64 connections send in each
    // round. In the second case, all connections send in each round.
    Case { name: "echo-64-of-10000", live: 10_000, ..ECHO_64 },
    Case { name: "echo-10000", live: 10_000, active: 10_000, rounds: 3, ..ECHO_64 },
    Case { name: "line-1", kind: Kind::Lines, bars: Bars { calls: Some(3.0), ..WARM }, ..ECHO },
    Case { name: "line-64", kind: Kind::Lines, ..ECHO_64 },
    Case {
        name: "lines-64x16",
        kind: Kind::Lines,
        depth: 16,
        rounds: 40,
        bars: Bars { calls: Some(2.05 / 16.0), ..WARM },
        ..ECHO_64
    },
    Case {
        name: "churn",
        kind: Kind::Churn,
        live: 0,
        active: BATCH,
        rounds: 100,
        bars: Bars { instructions: None, allocations: None, calls: None },
        ..ECHO
    },
];

/// The instructions per request of each case in the list, divided by those of the first case, must
/// not exceed this ratio. The cost of a request must not depend on the number of connections.
pub(crate) const GROWTH: (&str, &[&str], f64) =
    ("echo-64", &["echo-64-of-10000", "echo-10000"], 1.1);

impl Case {
    pub(crate) fn by_name(name: &str) -> Option<&'static Self> {
        CASES.iter().find(|case| case.name == name)
    }

    /// Returns the number of requests per round, or of connections for [`Kind::Churn`].
    pub(crate) fn requests(&self) -> u64 {
        (self.active * self.depth) as u64
    }

    /// Returns the number of warm-up rounds. In these rounds each connection is served at least
    /// once.
    pub(crate) fn warm_up(&self) -> u64 {
        2 + self.live.div_ceil(self.active) as u64
    }

    /// Returns the bytes that one connection sends in a round.
    pub(crate) fn request(&self) -> Vec<u8> {
        let mut request = [b'a'; SIZE];
        if self.kind == Kind::Lines {
            request[SIZE - 1] = b'\n';
        }
        request.repeat(self.depth)
    }
}
