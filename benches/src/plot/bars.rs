//! Grouped horizontal bars.

use super::svg::{Anchor, Svg, text_width};

/// A bar chart.
#[derive(Clone, Debug)]
pub struct Bars<'a> {
    pub title: &'a str,
    /// The names of the bars in each group, in order.
    pub series: &'a [&'a str],
    pub groups: &'a [Group],
    /// Formats the label of a bar.
    pub label: fn(f64) -> String,
}

/// Bars that are compared with each other. The longest bar of each group fills the width, so that
/// one chart can show groups of different magnitudes.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: String,
    /// One value per series, `None` if the series has no value.
    pub values: Vec<Option<f64>>,
}

const WIDTH: f64 = 760.0;
const BAR: f64 = 15.0;
const GAP: f64 = 16.0;

/// Draws a chart.
#[must_use]
pub fn bars(chart: &Bars<'_>) -> String {
    let mut svg = Svg::new(WIDTH, chart.title);
    let mut y = svg.legend(chart.series.iter().copied()) + 10.0;
    let names = chart.groups.iter().map(|group| text_width(&group.name));
    let left = 32.0 + names.fold(0.0, f64::max);
    let max_length = WIDTH - 90.0 - left;
    for Group { name, values } in chart.groups {
        let height = BAR * values.len() as f64;
        svg.text(left - 10.0, y + height / 2.0 + 4.0, Anchor::End, "group", name);
        svg.line((left, y - 4.0), (left, y + height + 4.0));
        let longest = values.iter().flatten().copied().fold(0.0, f64::max);
        for (series, value) in values.iter().enumerate() {
            let label = value.map_or_else(|| "–".into(), chart.label);
            let part = value.map_or(0.0, |value| if longest > 0.0 { value / longest } else { 0.0 });
            let length = (max_length * part).max(0.0);
            if value.is_some() {
                svg.rect((left, y + 1.0), (length.max(1.0), BAR - 2.0), series);
            }
            svg.text(left + length + 6.0, y + BAR - 4.0, Anchor::Start, "value", &label);
            y += BAR;
        }
        y += GAP;
    }
    if chart.groups.len() > 1 {
        svg.text(
            left,
            y + 2.0,
            Anchor::Start,
            "value",
            "the longest bar of each group fills the width",
        );
        y += 16.0;
    }
    svg.finish(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::human;

    fn chart(groups: &[Group]) -> String {
        let series = ["ours", "theirs"];
        bars(&Bars { title: "requests a second", series: &series, groups, label: human::amount })
    }

    fn lengths(svg: &str) -> Vec<f64> {
        let bars = svg.lines().filter(|line| line.contains(r#"height="13.0""#));
        bars.map(|line| {
            let width = line.split("width=\"").nth(1).unwrap();
            width.split('"').next().unwrap().parse().unwrap()
        })
        .collect()
    }

    #[test]
    fn bar_lengths_are_relative_to_the_longest_bar_of_the_group() {
        let groups = [
            Group { name: "1".into(), values: vec![Some(50_000.0), Some(25_000.0)] },
            Group { name: "10,000".into(), values: vec![Some(1.0), Some(4.0)] },
        ];
        let svg = chart(&groups);
        let lengths = lengths(&svg);
        assert!((lengths[0] / lengths[1] - 2.0).abs() < 0.01, "{lengths:?}");
        assert!((lengths[3] / lengths[2] - 4.0).abs() < 0.01, "{lengths:?}");
        assert!((lengths[0] - lengths[3]).abs() < 0.01, "{lengths:?}");
        for word in [">ours<", ">theirs<", ">10,000<", ">50 k<"] {
            assert!(svg.contains(word), "{word}");
        }
    }

    #[test]
    fn a_missing_value_has_no_bar() {
        let svg = chart(&[Group { name: "idle".into(), values: vec![Some(3.0), None] }]);
        assert_eq!(lengths(&svg).len(), 1);
        assert!(svg.contains(">–<"));
    }

    #[test]
    fn a_chart_of_zeros_is_valid() {
        let svg = chart(&[Group { name: "zero".into(), values: vec![Some(0.0), Some(0.0)] }]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
