//! Plots: writes charts of the results.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bench::human;
use bench::plot::{self, Bars, Group};

use crate::cases::Work;
use crate::figures::{Figure, Results};
use crate::named::Named;
use crate::servers::Kind;

/// Writes each chart that has results to the folder `out`. Returns the paths of the files.
pub(crate) fn write(results: &[Results], out: &Path) -> io::Result<Vec<PathBuf>> {
    let charts = [
        (
            "cpu.svg",
            "Processor time of the server, per request; with churn, per connection",
            cpu(results),
            human::time as fn(f64) -> String,
        ),
        ("latency.svg", "Latency at 64 connections, closed loop", latency(results), human::time),
        ("memory.svg", "Resident memory per idle connection", memory(results), bytes),
    ];
    let mut written = Vec::new();
    for (name, title, groups, label) in charts {
        if !groups.is_empty() {
            let series: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            let svg = plot::bars(&Bars { title, series: &series, groups: &groups, label });
            let path = out.join(name);
            fs::write(&path, svg)?;
            written.push(path);
        }
    }
    Ok(written)
}

fn bytes(value: f64) -> String {
    format!("{} B", human::amount(value))
}

fn cpu(results: &[Results]) -> Vec<Group> {
    let busy = results.iter().filter(|results| results.case.work != Work::Idle);
    busy.map(|results| group(results, results.case.short_title(), Figure::Cpu)).collect()
}

fn latency(results: &[Results]) -> Vec<Group> {
    let quantiles = [(Figure::P50, "p50"), (Figure::P99, "p99"), (Figure::P999, "p99.9")];
    let requests = results.iter().filter(|results| {
        results.case.connections == 64 && matches!(results.case.work, Work::Requests { .. })
    });
    let groups = requests.flat_map(|results| {
        quantiles.map(|(figure, quantile)| {
            group(results, format!("{}: {quantile}", results.case.name), figure)
        })
    });
    groups.collect()
}

fn memory(results: &[Results]) -> Vec<Group> {
    let idle = results.iter().filter(|results| results.case.work == Work::Idle);
    idle.map(|results| group(results, results.case.short_title(), Figure::Memory)).collect()
}

fn group(results: &Results, name: String, figure: Figure) -> Group {
    let value = |kind: &Kind| results.row(*kind).and_then(|row| row.median(figure));
    Group { name, values: Kind::ALL.iter().map(value).collect() }
}
