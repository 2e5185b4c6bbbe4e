//! Shrinking: searches for the fewest steps of a seed that still cause a violation.

use crate::world::{self, Violation};

/// Maximum number of runs for one shrink.
const RUNS: usize = 2_000;

/// Parses steps such as `3,7..12`.
pub(crate) fn parse(text: &str) -> Result<Vec<usize>, String> {
    let number = |text: &str| text.parse::<usize>().map_err(|error| format!("{text}: {error}"));
    let mut steps = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        match part.split_once("..") {
            Some((from, to)) => steps.extend(number(from)?..number(to)?),
            None => steps.push(number(part)?),
        }
    }
    Ok(steps)
}

fn format_steps(steps: &[usize]) -> String {
    let mut parts = Vec::new();
    let mut rest = steps;
    while let Some(&first) = rest.first() {
        let run = rest.iter().enumerate().take_while(|(at, step)| first + at == **step).count();
        parts.push(if run == 1 { first.to_string() } else { format!("{first}..{}", first + run) });
        rest = &rest[run..];
    }
    parts.join(",")
}

/// Removes smaller and smaller parts while a violation remains (Zeller's ddmin).
fn shrink(seed: u64, steps: &[usize]) -> (Vec<usize>, Option<Violation>) {
    let mut kept = steps.to_vec();
    let mut last = None;
    let (mut part, mut runs) = (kept.len().div_ceil(2), 0);
    while part > 0 && runs < RUNS {
        let (mut from, mut shorter) = (0, false);
        while from < kept.len() && runs < RUNS {
            let to = (from + part).min(kept.len());
            let tried: Vec<usize> = [&kept[..from], &kept[to..]].concat();
            runs += 1;
            match world::run(seed, tried.iter().copied(), false) {
                Err(violation) => {
                    kept = tried.into_iter().filter(|&step| step <= violation.step).collect();
                    last = Some(violation);
                    shorter = true;
                }
                Ok(_) => from = to,
            }
        }
        if !shorter {
            part /= 2;
        }
    }
    (kept, last)
}

/// Prints a command that replays a violation with all steps. If `fewest` is true, also searches for
/// the fewest steps, and prints a command that replays the violation with these steps.
pub(crate) fn report(seed: u64, violation: &Violation, steps: &[usize], fewest: bool) {
    let command = "cargo run --release --features sim --example simulate --";
    let until: Vec<usize> = steps.iter().copied().filter(|&step| step <= violation.step).collect();
    println!("replay: {command} --trace {seed} --only {}", format_steps(&until));
    if !fewest {
        return;
    }
    let (kept, last) = shrink(seed, &until);
    if let Some(last) = last {
        println!("shrunk to {} steps: {}", kept.len(), last.what);
        println!("replay: {command} --trace {seed} --only {}", format_steps(&kept));
    }
}
