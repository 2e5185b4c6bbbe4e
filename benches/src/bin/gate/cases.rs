//! Cases: what is measured, known by name to the driver and to the server it starts.

/// One kind of traffic, the same in every round.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Connections that are there.
    pub(crate) live: usize,
    /// Connections that send in a round; the next ones in the next round.
    pub(crate) active: usize,
    /// Requests a connection sends at once.
    pub(crate) depth: usize,
    /// Measured rounds.
    pub(crate) rounds: u64,
    pub(crate) bars: Bars,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 64 bytes and back, `Framing::Drained`.
    Echo,
    /// Lines of 64 bytes with their newline, and back, `Framing::Delimited`.
    Lines,
    /// Accept, one echo, close: what counts is a connection.
    Churn,
}

/// What must not be passed, whatever was committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bars {
    pub(crate) instructions: Option<f64>,
    pub(crate) allocations: Option<f64>,
    pub(crate) calls: Option<f64>,
}

/// Bytes of a request, of its newline too.
pub(crate) const SIZE: usize = 64;

/// Connections that come and go in a round of [`Kind::Churn`], and that connect at once in others:
/// fewer than a backlog holds.
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
    // As echo-64, among many who are silent; and all of them at once.
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

/// Instructions a request may not grow by more than this from the first case to the second: what
/// a request costs does not depend on how many connections there are.
pub(crate) const GROWTH: (&str, &[&str], f64) =
    ("echo-64", &["echo-64-of-10000", "echo-10000"], 1.1);

impl Case {
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        CASES.iter().find(|case| case.name == name)
    }

    /// What a round is made of: requests, or connections that come and go.
    pub(crate) fn requests(&self) -> u64 {
        (self.active * self.depth) as u64
    }

    /// Rounds before the measured ones: each connection has been served at least once.
    pub(crate) fn warm_up(&self) -> u64 {
        2 + self.live.div_ceil(self.active) as u64
    }

    /// What one connection sends in a round.
    pub(crate) fn request(&self) -> Vec<u8> {
        let mut request = [b'a'; SIZE];
        if self.kind == Kind::Lines {
            request[SIZE - 1] = b'\n';
        }
        request.repeat(self.depth)
    }
}
