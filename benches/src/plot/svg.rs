//! The SVG elements of plots.

use std::fmt::{self, Display, Write};

/// One colour per series, readable on white and on black.
const COLOURS: [&str; 8] =
    ["#2f81f7", "#e8830c", "#1a9e76", "#e0559a", "#8b6cf0", "#7d8590", "#b59b00", "#16a3b8"];

const STYLE: &str = "\
text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif;fill:#424a53}\
.title{font-size:15px;font-weight:600;fill:#1f2328}\
.value{font-size:11px}\
.grid{stroke:#8b949e;stroke-opacity:.25}\
.curve{fill:none;stroke-width:2;stroke-linejoin:round}\
@media(prefers-color-scheme:dark){text{fill:#adb5be}.title{fill:#f0f6fc}}";

/// The part of a text that is placed at its x coordinate.
#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Debug)]
pub(super) struct Svg {
    body: String,
    width: f64,
}

impl Svg {
    /// Creates an image with a title at the top.
    pub(super) fn new(width: f64, title: &str) -> Self {
        let mut svg = Self { body: String::new(), width };
        svg.text(16.0, 26.0, Anchor::Start, "title", title);
        svg
    }

    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = Escaped(text);
        self.add(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{text}</text>"#
        ));
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add(format_args!(
            r#"<line class="grid" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        ));
    }

    pub(super) fn rect(&mut self, at: (f64, f64), size: (f64, f64), series: usize) {
        let ((x, y), (width, height), colour) = (at, size, colour(series));
        self.add(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2" fill="{colour}"/>"#
        ));
    }

    pub(super) fn curve(&mut self, points: impl Iterator<Item = (f64, f64)>, series: usize) {
        let mut list = String::new();
        for (x, y) in points {
            write!(list, "{x:.1},{y:.1} ").expect("writing to a string cannot fail");
        }
        let (list, colour) = (list.trim_end(), colour(series));
        self.add(format_args!(r#"<polyline class="curve" stroke="{colour}" points="{list}"/>"#));
    }

    /// Draws the names of the series below the title, each with its colour, in as many rows as
    /// needed. Returns the y coordinate of the lower edge.
    pub(super) fn legend<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> f64 {
        let (mut x, mut y) = (16.0, 46.0);
        for (series, name) in names.enumerate() {
            let width = 30.0 + text_width(name);
            if x + width > self.width && x > 16.0 {
                (x, y) = (16.0, y + 18.0);
            }
            self.rect((x, y - 9.0), (10.0, 10.0), series);
            self.text(x + 15.0, y, Anchor::Start, "name", name);
            x += width;
        }
        y + 8.0
    }

    pub(super) fn finish(self, height: f64) -> String {
        let Self { body, width } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
             width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\">\n\
             <style>{STYLE}</style>\n{body}</svg>\n"
        )
    }

    fn add(&mut self, element: fmt::Arguments<'_>) {
        writeln!(self.body, "{element}").expect("writing to a string cannot fail");
    }
}

/// Estimates the width of a text, because the font is unknown.
pub(super) fn text_width(text: &str) -> f64 {
    7.0 * text.chars().count() as f64
}

fn colour(series: usize) -> &'static str {
    COLOURS[series % COLOURS.len()]
}

struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svg_markup_characters_are_escaped() {
        let mut svg = Svg::new(100.0, "a < b & c > d");
        svg.legend(["<script>"].into_iter());
        let text = svg.finish(50.0);
        assert!(text.contains(">a &lt; b &amp; c &gt; d</text>"), "{text}");
        assert!(text.contains("&lt;script&gt;"), "{text}");
    }

    #[test]
    fn a_long_legend_continues_in_the_next_row() {
        let mut svg = Svg::new(200.0, "");
        let one = svg.legend(["short"].into_iter());
        let two = svg.legend(["a rather long name", "and another one"].into_iter());
        assert!(two > one);
    }
}
