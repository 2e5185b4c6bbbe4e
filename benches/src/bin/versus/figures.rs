//! Figures: one sample per round and server, the medians, and the ratios between servers.

use std::time::Duration;

use bench::client::Outcome;

use crate::cases::Case;
use crate::servers::Kind;

/// A measured quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Requests per second.
    Rate,
    /// Latency in nanoseconds.
    P50,
    P99,
    P999,
    /// Processor time of the server in nanoseconds per request, or per connection with churn.
    Cpu,
    /// Resident bytes per connection.
    Memory,
}

/// One round of one server: the figures that the case measures.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample([Option<f64>; Figure::Memory as usize + 1]);

impl Sample {
    pub(crate) fn with(mut self, figure: Figure, value: f64) -> Self {
        self.0[figure as usize] = Some(value);
        self
    }

    pub(crate) fn of_work(outcome: &Outcome, cpu: Duration) -> Self {
        let requests = outcome.requests as f64;
        let quantile = |of| outcome.latency.value_at_quantile(of) as f64;
        Self::default()
            .with(Figure::Rate, requests / outcome.elapsed.as_secs_f64())
            .with(Figure::P50, quantile(0.5))
            .with(Figure::P99, quantile(0.99))
            .with(Figure::P999, quantile(0.999))
            .with(Figure::Cpu, cpu.as_nanos() as f64 / requests)
    }

    fn get(&self, figure: Figure) -> Option<f64> {
        self.0[figure as usize]
    }

    /// Returns the figure by which servers are compared: processor time or memory.
    fn cost(&self) -> Option<f64> {
        self.get(Figure::Cpu).or(self.get(Figure::Memory))
    }
}

/// The rounds of one server. There are no samples if the server cannot handle the case.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) samples: Vec<Sample>,
}

impl Row {
    pub(crate) fn median(&self, figure: Figure) -> Option<f64> {
        median(self.samples.iter().filter_map(|sample| sample.get(figure)).collect())
    }

    /// Returns half the difference between the highest and the lowest cost, divided by the median.
    pub(crate) fn spread(&self) -> Option<f64> {
        let costs: Vec<f64> = self.samples.iter().filter_map(Sample::cost).collect();
        let max = costs.iter().copied().reduce(f64::max)?;
        let min = costs.iter().copied().reduce(f64::min)?;
        Some((max - min) / 2.0 / median(costs)?)
    }
}

/// All servers in one case.
#[derive(Clone, Debug)]
pub(crate) struct Results {
    pub(crate) case: Case,
    pub(crate) rows: Vec<Row>,
}

impl Results {
    pub(crate) fn row(&self, kind: Kind) -> Option<&Row> {
        self.rows.iter().find(|row| row.kind == kind)
    }

    /// Divides the cost of `row` by the cost of `other` in each round. Returns the median of these
    /// ratios. The samples of a round are measured within a few seconds of each other.
    pub(crate) fn ratio(&self, row: &Row, other: Kind) -> Option<f64> {
        let pairs = row.samples.iter().zip(&self.row(other)?.samples);
        median(pairs.filter_map(|(this, other)| Some(this.cost()? / other.cost()?)).collect())
    }
}

/// Returns the middle value, or the mean of the two middle values.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0, 4.0]), Some(3.0));
    }

    #[test]
    fn a_ratio_compares_samples_of_the_same_round() {
        let row = |kind, costs: [f64; 3]| Row {
            kind,
            samples: costs.map(|cost| Sample::default().with(Figure::Cpu, cost)).to_vec(),
        };
        // From the second round on the machine is half as fast. This does not change the ratio.
        let ours = row(Kind::PoolManager, [110.0, 220.0, 240.0]);
        let results = Results {
            case: crate::cases::CASES[0],
            rows: vec![row(Kind::Mio, [100.0, 200.0, 200.0])],
        };
        assert_eq!(results.ratio(&ours, Kind::Mio), Some(1.1));
        assert_eq!(results.ratio(&ours, Kind::Tokio), None);
    }
}
