//! Profile: the instructions of a request in each function. The instructions of a function are
//! divided further between the functions that were inlined into it.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use addr2line::Loader;

/// Functions with fewer instructions per request are not printed.
const MIN_COST: f64 = 2.0;

/// Maximum number of nested inlined functions that a line names.
const MAX_LEVELS: usize = 3;

/// Prints the profile in a file that callgrind wrote with `--dump-instr=yes`.
pub(crate) fn print(file: &Path, program: &Path, requests: u64) -> Result<(), Box<dyn Error>> {
    let loader = Loader::new(program).map_err(|error| error.to_string())?;
    let share = |cost: u64| cost as f64 / requests as f64;
    let mut functions: Vec<(String, HashMap<u64, u64>)> =
        costs(&fs::read_to_string(file)?).into_iter().collect();
    let total = |costs: &HashMap<u64, u64>| share(costs.values().sum());
    functions.sort_by(|one, other| total(&other.1).total_cmp(&total(&one.1)));
    for (function, costs) in functions {
        if total(&costs) < MIN_COST {
            break;
        }
        println!("{:>9.1}  {function}", total(&costs));
        let mut parts: Vec<(String, u64)> = parts(&loader, &function, &costs).into_iter().collect();
        parts.sort_by_key(|&(_, cost)| std::cmp::Reverse(cost));
        for (part, cost) in parts.into_iter().filter(|&(_, cost)| share(cost) >= MIN_COST) {
            println!("{:>17.1}  {part}", share(cost));
        }
    }
    Ok(())
}

/// Reads the cost of each instruction of each function, excluding the functions that it calls.
fn costs(text: &str) -> HashMap<String, HashMap<u64, u64>> {
    let (mut names, mut costs) = (HashMap::new(), HashMap::<String, HashMap<u64, u64>>::new());
    let (mut function, mut address, mut called) = (String::new(), 0, false);
    for line in text.lines() {
        if let Some((kind, name)) = line.split_once('=') {
            match kind {
                "fn" => function = resolve_name(&mut names, name),
                "cfn" => drop(resolve_name(&mut names, name)),
                "calls" => called = true,
                _ => {}
            }
            continue;
        }
        let mut words = line.split(' ');
        let (Some(position), Some(_), Some(cost)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let (Some(at), Ok(cost)) = (resolve_address(address, position), cost.parse::<u64>()) else {
            continue;
        };
        address = at;
        if !std::mem::take(&mut called) {
            *costs.entry(function.clone()).or_default().entry(at).or_default() += cost;
        }
    }
    costs
}

/// Resolves a name, which is written in full only the first time: `(7) main`, then `(7)`.
fn resolve_name(names: &mut HashMap<String, String>, name: &str) -> String {
    match name.split_once(' ') {
        Some((number, full)) => {
            names.insert(number.into(), full.into());
            full.into()
        }
        None => names.get(name).cloned().unwrap_or_else(|| name.into()),
    }
}

/// Resolves an address, which is absolute or relative to the previous address.
fn resolve_address(from: u64, position: &str) -> Option<u64> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match position.split_at_checked(1)? {
        ("*", _) => Some(from),
        ("+", by) => from.checked_add(number(by)?),
        ("-", by) => from.checked_sub(number(by)?),
        _ => number(position),
    }
}

/// Divides the costs of a function between the functions that were inlined into it. Returns an
/// empty map for a function that is not part of the program.
fn parts(loader: &Loader, function: &str, costs: &HashMap<u64, u64>) -> HashMap<String, u64> {
    let mut parts = HashMap::new();
    for (&address, &cost) in costs {
        let mut inlined = frames(loader, address);
        let outermost = inlined.pop();
        if !outermost.is_some_and(|name| function.ends_with(&format!("::{}", short(&name)))) {
            continue;
        }
        let steps: Vec<&str> =
            inlined.iter().rev().take(MAX_LEVELS).map(|name| short(name)).collect();
        let part = if steps.is_empty() { "itself".into() } else { steps.join(" > ") };
        *parts.entry(part).or_default() += cost;
    }
    parts
}

/// Returns the functions that an instruction belongs to, from the innermost inlined function to
/// the function that was not inlined.
fn frames(loader: &Loader, address: u64) -> Vec<String> {
    let mut names = Vec::new();
    let Ok(mut frames) = loader.find_frames(address) else { return names };
    while let Ok(Some(frame)) = frames.next() {
        let name = frame.function.and_then(|name| name.demangle().map(String::from).ok());
        names.push(name.unwrap_or_default());
    }
    names
}

/// Returns the name without type parameters, for example `fill` for `fill<S, H, B>`.
fn short(name: &str) -> &str {
    name.split('<').next().unwrap_or(name)
}
