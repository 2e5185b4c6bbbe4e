//! Formats numbers with three digits and a unit.

/// Formats nanoseconds, for example as `18.8 µs`.
#[must_use]
pub fn time(nanos: f64) -> String {
    let (value, unit) = match nanos {
        n if n < 999.5 => (n, "ns"),
        n if n < 999.5e3 => (n / 1e3, "µs"),
        n if n < 999.5e6 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    format!("{} {unit}", digits(value))
}

/// Formats a number that is not a time, for example as `52.1 k`. The caller may append a unit.
#[must_use]
pub fn amount(value: f64) -> String {
    let (value, prefix) = match value {
        n if n < 999.5 => (n, ""),
        n if n < 999.5e3 => (n / 1e3, " k"),
        n if n < 999.5e6 => (n / 1e6, " M"),
        n => (n / 1e9, " G"),
    };
    format!("{}{prefix}", digits(value))
}

/// Formats three significant digits, without trailing zeros.
fn digits(value: f64) -> String {
    let places = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.places$}");
    if places == 0 {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_three_digits_and_a_fitting_unit() {
        for (nanos, text) in [
            (0.0, "0 ns"),
            (1.0, "1 ns"),
            (999.0, "999 ns"),
            (999.7, "1 µs"),
            (18_815.0, "18.8 µs"),
            (500_000.0, "500 µs"),
            (999_900.0, "1 ms"),
            (4_632_575.0, "4.63 ms"),
            (99_990_000.0, "100 ms"),
            (1.2e9, "1.2 s"),
            (3.6e12, "3600 s"),
        ] {
            assert_eq!(time(nanos), text);
        }
    }

    #[test]
    fn an_amount_has_three_digits_and_a_fitting_prefix() {
        for (value, text) in [
            (0.0, "0"),
            (0.87, "0.87"),
            (9.996, "10"),
            (640.0, "640"),
            (999.9, "1 k"),
            (54_338.0, "54.3 k"),
            (1_070_650.0, "1.07 M"),
            (2e9, "2 G"),
        ] {
            assert_eq!(amount(value), text);
        }
    }
}
