//! Figures: those that were committed, and how new ones compare.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use crate::cases::{Case, GROWTH};
use crate::count::Cost;

/// A figure may be this much above the committed one.
const TOLERANCE: f64 = 0.03;

/// System calls are whole per round, so any difference is one.
const EXACT: f64 = 0.000_1;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/figures.txt");

const HEAD: &str = "\
# What a request costs, or for `churn` a connection; `cargo run --release -p bench --bin gate` holds
# changes to it, and with `-- --write` writes it anew.
";

/// Figures by name of case, and what they were made with.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) made_with: Vec<String>,
    pub(crate) costs: Vec<(String, Cost)>,
}

/// What becomes of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    Better,
    Worse,
}

impl Figures {
    pub(crate) fn committed() -> Result<Self, String> {
        let text = fs::read_to_string(FILE)
            .map_err(|error| format!("can't read {FILE}: {error}; `-- --write` makes it"))?;
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

    /// Commits `costs`, those of all cases, in the place of what was.
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

    /// What is not as it was when these were made. Another compiler may well move a figure by more
    /// than is tolerated.
    pub(crate) fn made_otherwise(&self) -> Vec<String> {
        let now = tools();
        let differs = |tool: &&String| !self.made_with.contains(tool);
        now.iter()
            .filter(differs)
            .map(|tool| format!("the committed figures were not made with {tool}"))
            .collect()
    }
}

/// What the figures depend on, apart from the code.
fn tools() -> [String; 3] {
    let first_line = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.unwrap_or_default().lines().next().unwrap_or("something unknown").to_owned()
    };
    [
        env!("COMPILER").to_owned(),
        first_line("getconf", "GNU_LIBC_VERSION"),
        first_line("valgrind", "--version"),
    ]
}

/// A line of the table, and whether its figure passes.
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

/// Compares what `case` costs with what was committed, and with its bars.
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

/// How instructions grow with the number of connections, as far as both ends were measured.
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
    fn three_percent_more_pass_and_a_little_more_does_not() {
        let judge = |figure| judge(figure, Some(1_000.0), None, TOLERANCE);
        assert_eq!(judge(1_030.0), Verdict::Same);
        assert_eq!(judge(1_030.1), Verdict::Worse);
        assert_eq!(judge(970.0), Verdict::Same);
        assert_eq!(judge(969.9), Verdict::Better);
    }

    #[test]
    fn one_allocation_in_a_thousand_requests_is_one_too_many() {
        assert_eq!(judge(0.0, Some(0.0), Some(0.0), EXACT), Verdict::Same);
        assert_eq!(judge(0.001, Some(0.0), Some(0.0), EXACT), Verdict::Worse);
        assert_eq!(judge(0.001, None, Some(0.0), EXACT), Verdict::Worse);
        assert_eq!(judge(2.0, Some(2.001), None, EXACT), Verdict::Better);
    }

    #[test]
    fn a_bar_holds_whatever_was_committed() {
        assert_eq!(judge(3.1, Some(3.1), Some(3.0), EXACT), Verdict::Worse);
        assert_eq!(judge(3.0, Some(3.1), Some(3.0), EXACT), Verdict::Better);
    }

    #[test]
    fn the_committed_figures_are_those_of_all_cases() {
        let figures = Figures::committed().unwrap();
        assert_eq!(figures.made_with.len(), 3);
        assert!(figures.made_otherwise().iter().all(|line| line.contains("were not made with")));
        let names: Vec<&str> = figures.costs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, CASES.each_ref().map(|case| case.name));
        assert!(Figures::parse("echo-1 600.0 none 3.0").is_err());
    }
}
