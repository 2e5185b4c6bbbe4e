//! Latency by percentile. On the x axis, each additional nine has the same width: the distance from
//! 90 % to 99 % equals that from 99 % to 99.9 %.

use hdrhistogram::Histogram;

use super::svg::{Anchor, Svg};
use crate::human;

/// One curve.
#[derive(Clone, Copy, Debug)]
pub struct Series<'a> {
    pub name: &'a str,
    /// Nanoseconds.
    pub latency: &'a Histogram<u64>,
}

const WIDTH: f64 = 760.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = WIDTH - 24.0;
const HEIGHT: f64 = 280.0;

/// Points of a curve for each nine.
const POINTS: u32 = 50;

/// Positions of the labelled percentiles, in nines: 90 % is at 1.0, 99 % at 2.0.
const TICKS: [(f64, &str); 8] = [
    (0.0, "min"),
    (std::f64::consts::LOG10_2, "p50"),
    (1.0, "p90"),
    (2.0, "p99"),
    (3.0, "p99.9"),
    (4.0, "p99.99"),
    (5.0, "p99.999"),
    (6.0, "p99.9999"),
];

/// Draws one curve per series. An empty series only appears in the legend.
#[must_use]
pub fn latency(title: &str, series: &[Series<'_>]) -> String {
    let mut svg = Svg::new(WIDTH, title);
    let top = svg.legend(series.iter().map(|series| series.name)) + 12.0;
    let frame = Frame::around(series, top);
    frame.draw_axes(&mut svg);
    for (number, Series { latency, .. }) in series.iter().enumerate() {
        if !latency.is_empty() {
            svg.curve(frame.points(latency).into_iter(), number);
        }
    }
    svg.finish(top + HEIGHT + 50.0)
}

/// The axes of a plot.
struct Frame {
    top: f64,
    /// The end of the x axis, in nines.
    nines: f64,
    /// The ends of the y axis, as decimal logarithms of nanoseconds.
    low: f64,
    high: f64,
}

impl Frame {
    fn around(series: &[Series<'_>], top: f64) -> Self {
        let full = || series.iter().map(|series| series.latency).filter(|all| !all.is_empty());
        let nines = full().map(nines).fold(1.0, f64::max);
        let low = full().map(Histogram::min).min().unwrap_or(1_000).max(1);
        let high = full().map(Histogram::max).max().unwrap_or(1_000_000).max(low + 1);
        let (low, high) = ((low as f64).log10(), (high as f64).log10());
        // Show at least one decade, so that noise does not look like a large difference.
        let middle = f64::midpoint(low, high);
        let half = ((high - low) / 2.0 * 1.05).max(0.5);
        Self { top, nines, low: (middle - half).max(0.0), high: middle + half }
    }

    fn x(&self, nines: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * nines / self.nines
    }

    fn y(&self, nanos: f64) -> f64 {
        let part = (nanos.max(1.0).log10() - self.low) / (self.high - self.low);
        self.top + HEIGHT * (1.0 - part)
    }

    fn draw_axes(&self, svg: &mut Svg) {
        let bottom = self.top + HEIGHT;
        for (nines, label) in TICKS.into_iter().filter(|(nines, _)| *nines <= self.nines) {
            let x = self.x(nines);
            svg.line((x, self.top), (x, bottom));
            svg.text(x, bottom + 18.0, Anchor::Middle, "tick", label);
        }
        svg.text(
            f64::midpoint(LEFT, RIGHT),
            bottom + 38.0,
            Anchor::Middle,
            "axis",
            "latency by percentile; each further nine has the same width",
        );
        for nanos in self.y_ticks() {
            let y = self.y(nanos);
            svg.line((LEFT, y), (RIGHT, y));
            svg.text(LEFT - 8.0, y + 4.0, Anchor::End, "tick", &human::time(nanos));
        }
    }

    /// Returns the powers of ten on the y axis. If there are few of them, also returns 2 times and
    /// 5 times each power.
    fn y_ticks(&self) -> Vec<f64> {
        let steps: &[f64] = if self.high - self.low > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let decades = (self.low.floor() as i32)..=(self.high.ceil() as i32);
        decades
            .flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)))
            .filter(|nanos| (self.low..=self.high).contains(&nanos.log10()))
            .collect()
    }

    fn points(&self, latency: &Histogram<u64>) -> Vec<(f64, f64)> {
        let end = nines(latency);
        let count = POINTS * (1..7).find(|nines| f64::from(*nines) >= end).unwrap_or(7);
        (0..=count)
            .map(|i| {
                let nines = end * f64::from(i) / f64::from(count);
                let quantile = 1.0 - 10_f64.powf(-nines);
                let value =
                    if i == count { latency.max() } else { latency.value_at_quantile(quantile) };
                (self.x(nines), self.y(value as f64))
            })
            .collect()
    }
}

/// Returns the number of nines that a histogram resolves. This is the decimal logarithm of its
/// number of values, limited to the range from 0.5 to 7.
fn nines(latency: &Histogram<u64>) -> f64 {
    (latency.len() as f64).log10().clamp(0.5, 7.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: impl Iterator<Item = u64>) -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 1 << 40, 3).unwrap();
        values.for_each(|value| histogram.saturating_record(value));
        histogram
    }

    #[test]
    fn each_series_has_a_name_and_a_curve_inside_the_plot() {
        let fast = histogram((1..10_000).map(|i| 10_000 + i));
        let slow = histogram((1..10_000).map(|i| i * i * 10));
        let text = latency(
            "two",
            &[Series { name: "fast", latency: &fast }, Series { name: "slow", latency: &slow }],
        );
        assert_eq!(text.matches("<polyline").count(), 2);
        for word in [">fast<", ">slow<", ">p99.9<", ">1 ms<"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        for list in text.split("points=\"").skip(1) {
            for point in list.split('"').next().unwrap().split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                assert!((LEFT..=RIGHT).contains(&x.parse().unwrap()), "{point}");
                assert!((0.0..=400.0).contains(&y.parse::<f64>().unwrap()), "{point}");
            }
        }
    }

    #[test]
    fn a_curve_ends_at_the_maximum_on_the_right() {
        let mut values = histogram(std::iter::repeat_n(1_000, 9_999));
        values.saturating_record(1_000_000);
        let frame = Frame::around(&[Series { name: "", latency: &values }], 0.0);
        let points = frame.points(&values);
        let (x, y) = points[points.len() - 1];
        assert!((x - RIGHT).abs() < 0.1);
        assert!((y - frame.y(values.max() as f64)).abs() < 0.1);
        assert!(points[points.len() / 2].1 > y + HEIGHT / 2.0);
    }

    #[test]
    fn an_empty_plot_is_valid() {
        let empty = histogram(std::iter::empty());
        let text = latency("nothing", &[Series { name: "empty", latency: &empty }]);
        assert!(text.contains(">empty<") && !text.contains("<polyline") && !text.contains("NaN"));
        assert!(!latency("none at all", &[]).contains("NaN"));
    }
}
