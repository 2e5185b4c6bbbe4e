//! The table: a block for each case, a line for each server.

use std::fmt;

use crate::figures::{Figure, Results, Row};
use crate::named::Named;
use crate::servers::Kind;

const HEAD: [&str; 9] =
    ["requests/s", "p50 us", "p99 us", "p99.9 us", "CPU ns", "spread", "bytes", "x mio", "x tokio"];

/// What the columns are.
pub(crate) const LEGEND: &str = "\
CPU is the server's, a request or, in churn, a connection; spread is half of what its rounds differ
by; bytes are resident, a connection; x is CPU or bytes beside another server's, round by round.
Figures are medians. pool-manager, tokio and threads have a deadline of 3 s, of a minute from 10,000
connections on; epoll and mio have none, and echo bytes where the others find lines.";

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.rows.iter().map(|row| row.samples.len()).max().unwrap_or(0);
        let plural = if rounds == 1 { "" } else { "s" };
        writeln!(f, "{} ({rounds} round{plural})", self.case.title())?;
        line(f, "", HEAD.map(Into::into))?;
        for row in &self.rows {
            line(f, row.kind.name(), self.cells(row))?;
        }
        Ok(())
    }
}

impl Results {
    fn cells(&self, row: &Row) -> [String; 9] {
        let micros = |figure| row.median(figure).map(|value| value / 1e3);
        [
            cell(row.median(Figure::Rate), whole),
            cell(micros(Figure::P50), |micros| format!("{micros:.1}")),
            cell(micros(Figure::P99), |micros| format!("{micros:.1}")),
            cell(micros(Figure::P999), |micros| format!("{micros:.1}")),
            cell(row.median(Figure::Cpu), whole),
            cell(row.spread(), |part| format!("{:.1}%", part * 100.0)),
            cell(row.median(Figure::Memory), whole),
            cell(self.ratio(row, Kind::Mio), |ratio| format!("{ratio:.2}")),
            cell(self.ratio(row, Kind::Tokio), |ratio| format!("{ratio:.2}")),
        ]
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, cells: [String; 9]) -> fmt::Result {
    write!(f, "  {name:<12}")?;
    for cell in cells {
        write!(f, "{cell:>11}")?;
    }
    writeln!(f)
}

fn cell(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| "-".into(), show)
}

/// A whole number, its thousands apart.
pub(crate) fn whole(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut shown = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::whole;

    #[test]
    fn thousands_are_apart() {
        assert_eq!(whole(0.4), "0");
        assert_eq!(whole(999.0), "999");
        assert_eq!(whole(1_000.0), "1,000");
        assert_eq!(whole(1_234_567.8), "1,234,568");
    }
}
