//! The table: one block per case, one line per server.

use std::fmt;

use crate::figures::{Figure, Results, Row};
use crate::named::Named;
use crate::servers::Kind;

const HEAD: [&str; 9] =
    ["requests/s", "p50 us", "p99 us", "p99.9 us", "CPU ns", "spread", "bytes", "x mio", "x tokio"];

/// Explains the columns.
pub(crate) const LEGEND: &str = "\
CPU is the server's processor time per request, or per connection in churn. spread is half the
difference between the highest and the lowest round. bytes are resident bytes per connection. x is
CPU or bytes, divided by that of the named server in the same round. Figures are medians.
pool-manager, tokio and threads have a deadline of 3 s, or of a minute with 10,000 connections or
more. epoll and mio have no deadline, and echo bytes where the other servers echo lines.";

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

/// Formats a whole number with commas between thousands.
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
    fn thousands_are_separated_by_commas() {
        assert_eq!(whole(0.4), "0");
        assert_eq!(whole(999.0), "999");
        assert_eq!(whole(1_000.0), "1,000");
        assert_eq!(whole(1_234_567.8), "1,234,568");
    }
}
