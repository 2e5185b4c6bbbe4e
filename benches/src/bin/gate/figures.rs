//! Figures: the committed figures, and the comparison of new figures with them.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use crate::cases::{Case, GROWTH};
use crate::count::Cost;

/// The maximum relative excess of instructions over the committed figure.
const TOLERANCE: f64 = 0.03;

/// The tolerance for rounding errors. Allocations and system calls per round are whole numbers, so
/// every real difference exceeds this tolerance.
const EXACT: f64 = 0.000_1;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/figures.txt");

const HEAD: &str = "\
# The cost of a request, or of a connection for `churn`. `cargo run --release -p bench --bin gate`
# compares with these figures; `-- --write` renews them.
";

/// Figures by name of case, and the versions of the tools with which they were measured.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) made_with: Vec<String>,
    pub(crate) costs: Vec<(String, Cost)>,
}

/// The result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    Better,
    Worse,
}

impl Figures {
    pub(crate) fn committed() -> Result<Self, String> {
        let text = fs::read_to_string(FILE)
            .map_err(|error| format!("can't read {FILE}: {error}; create it with `-- --write`"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut figures = Self::default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(tool) = line.strip_prefix("with ") {
                figures.made_with.push(tool.to_owned());
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |index: usize| words.get(index)?.parse().ok();
            let cost = || {
                let (instructions, allocations) = (number(1)?, number(2)?);
                Some(Cost { instructions, allocations, calls: number(3)? })
            };
            let cost = cost().ok_or_else(|| format!("{FILE}: not a figure: {line}"))?;
            figures.costs.push((words[0].to_owned(), cost));
        }
        Ok(figures)
    }

    /// Writes the file of committed figures. `costs` holds all cases.
    pub(crate) fn write(costs: &[(&Case, Cost)]) -> Result<(), String> {
        let mut text = HEAD.to_owned();
        for tool in tools() {
            let _ = writeln!(text, "with {tool}");
        }
        let [first, second, third] = ["instructions", "allocations", "calls"];
        let _ = writeln!(text, "\n# {:18}{first:>14}{second:>14}{third:>14}", "case");
        for (case, Cost { instructions, allocations, calls }) in costs {
            let name = case.name;
            let _ = writeln!(text, "{name:20}{instructions:14.4}{allocations:14.4}{calls:14.4}");
        }
        fs::write(FILE, text).map_err(|error| format!("can't write {FILE}: {error}"))
    }

    pub(crate) fn of(&self, case: &Case) -> Option<Cost> {
        self.costs.iter().find(|(name, _)| name == case.name).map(|(_, cost)| *cost)
    }

    /// Returns a note for each tool whose version in use differs from the version with which the
    /// figures were made. Another compiler may change a figure by more than the tolerance.
    pub(crate) fn tool_differences(&self) -> Vec<String> {
        let now = tools();
        let differs = |tool: &&String| !self.made_with.contains(tool);
        now.iter()
            .filter(differs)
            .map(|tool| format!("the committed figures were not made with {tool}"))
            .collect()
    }
}

/// Returns the versions of the tools that affect the figures.
fn tools() -> [String; 3] {
    let first_line = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.unwrap_or_default().lines().next().unwrap_or("an unknown version").to_owned()
    };
    [
        env!("COMPILER").to_owned(),
        first_line("getconf", "GNU_LIBC_VERSION"),
        first_line("valgrind", "--version"),
    ]
}

/// A line of the table, and the verdict on its figure.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) line: String,
    pub(crate) verdict: Verdict,
}

pub(crate) fn head() -> String {
    format!(
        "{:18}{:14}{:>12}{:>12}{:>12}{:>9}",
        "case", "", "figure", "committed", "difference", "bar"
    )
}

/// Compares the cost of `case` with the committed cost and with the limits of the case.
pub(crate) fn compare(case: &Case, cost: Cost, committed: Option<Cost>) -> [Row; 3] {
    let row = |what, of: fn(Cost) -> f64, bar, tolerance, places| {
        Row::new([case.name, what], of(cost), committed.map(of), bar, tolerance, places)
    };
    [
        row("instructions", |cost| cost.instructions, case.bars.instructions, TOLERANCE, 1),
        row("allocations", |cost| cost.allocations, case.bars.allocations, EXACT, 4),
        row("system calls", |cost| cost.calls, case.bars.calls, EXACT, 4),
    ]
}

/// Returns the growth of instructions with the number of connections, if both cases of a pair were
/// measured.
pub(crate) fn growth(costs: &[(&Case, Cost)]) -> Vec<Row> {
    let (few, many, max) = GROWTH;
    let of = |name: &str| {
        let cost = costs.iter().find(|(case, _)| case.name == name);
        cost.map(|(_, cost)| cost.instructions)
    };
    let pairs = many.iter().filter_map(|name| Some((name, of(name)? / of(few)?)));
    pairs
        .map(|(name, growth)| Row::new([name, "growth"], growth, None, Some(max), 0.0, 2))
        .collect()
}

impl Row {
    fn new(
        [case, what]: [&str; 2],
        figure: f64,
        committed: Option<f64>,
        bar: Option<f64>,
        tolerance: f64,
        places: usize,
    ) -> Self {
        let verdict = judge(figure, committed, bar, tolerance);
        let number = |number: Option<f64>, places| {
            number.map_or("-".to_owned(), |number| format!("{number:.places$}"))
        };
        let difference = committed.map(|committed| match figure - committed {
            difference if difference.abs() < EXACT => "0 %".to_owned(),
            difference if committed == 0.0 => format!("{difference:+.places$}"),
            difference => format!("{:+.1} %", 100.0 * difference / committed),
        });
        let mark = match verdict {
            Verdict::Same => "",
            Verdict::Better => "  better: renew the figures",
            Verdict::Worse => "  TOO HIGH",
        };
        let line = format!(
            "{case:18}{what:14}{:>12}{:>12}{:>12}{:>9}{mark}",
            number(Some(figure), places),
            number(committed, places),
            difference.unwrap_or("-".to_owned()),
            number(bar, 2),
        );
        Self { line, verdict }
    }
}

fn judge(figure: f64, committed: Option<f64>, bar: Option<f64>, tolerance: f64) -> Verdict {
    let too_high = |max: f64| figure > max + EXACT;
    if bar.is_some_and(too_high) {
        return Verdict::Worse;
    }
    match committed {
        Some(committed) if too_high(committed * (1.0 + tolerance)) => Verdict::Worse,
        Some(committed) if figure < committed * (1.0 - tolerance) - EXACT => Verdict::Better,
        _ => Verdict::Same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::CASES;

    #[test]
    fn an_excess_of_three_percent_passes_and_more_fails() {
        let judge = |figure| judge(figure, Some(1_000.0), None, TOLERANCE);
        assert_eq!(judge(1_030.0), Verdict::Same);
        assert_eq!(judge(1_030.1), Verdict::Worse);
        assert_eq!(judge(970.0), Verdict::Same);
        assert_eq!(judge(969.9), Verdict::Better);
    }

    #[test]
    fn one_allocation_in_a_thousand_requests_fails() {
        assert_eq!(judge(0.0, Some(0.0), Some(0.0), EXACT), Verdict::Same);
        assert_eq!(judge(0.001, Some(0.0), Some(0.0), EXACT), Verdict::Worse);
        assert_eq!(judge(0.001, None, Some(0.0), EXACT), Verdict::Worse);
        assert_eq!(judge(2.0, Some(2.001), None, EXACT), Verdict::Better);
    }

    #[test]
    fn a_bar_applies_regardless_of_the_committed_figure() {
        assert_eq!(judge(3.1, Some(3.1), Some(3.0), EXACT), Verdict::Worse);
        assert_eq!(judge(3.0, Some(3.1), Some(3.0), EXACT), Verdict::Better);
    }

    #[test]
    fn the_committed_figures_cover_all_cases() {
        let figures = Figures::committed().unwrap();
        assert_eq!(figures.made_with.len(), 3);
        assert!(figures.tool_differences().iter().all(|line| line.contains("were not made with")));
        let names: Vec<&str> = figures.costs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, CASES.each_ref().map(|case| case.name));
        assert!(Figures::parse("echo-1 600.0 none 3.0").is_err());
    }
}
