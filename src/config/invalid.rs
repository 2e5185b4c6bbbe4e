//! Configuration errors. Each contains the invalid value and the limit that it violates.

use std::fmt;
use std::io;

/// Returned when a configuration is invalid. None of its settings was applied.
///
/// ```
/// use pool_manager::{Config, Manager};
/// let refused = Manager::new(Config::new().min_workers(9).max_workers(3), |_, _| Ok(()));
/// assert_eq!(
///     refused.unwrap_err().to_string(),
///     "min_workers is 9 but max_workers is 3: lower min_workers or raise max_workers",
/// );
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConfigError {
    /// `min_workers` is larger than `max_workers`.
    MinAboveMax {
        /// The given `min_workers`.
        min: usize,
        /// The given `max_workers`.
        max: usize,
    },
    /// A field is zero, but must be greater than zero.
    Zero {
        /// Name of the field.
        field: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// A field is smaller than its minimum, which is the value of another field.
    Below {
        /// Name of the field.
        field: &'static str,
        /// The given value.
        value: usize,
        /// Name of the other field.
        other: &'static str,
        /// Value of the other field.
        least: usize,
    },
    /// A field is larger than its maximum.
    TooLarge {
        /// Name of the field.
        field: &'static str,
        /// The given value.
        value: usize,
        /// The maximum.
        max: usize,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinAboveMax { min, max } => write!(
                f,
                "min_workers is {min} but max_workers is {max}: lower min_workers or raise \
                 max_workers"
            ),
            Self::Zero { field, instead } => {
                write!(f, "{field} is 0 but must be greater than 0; {instead}")
            }
            Self::Below { field, value, other, least } => {
                write!(
                    f,
                    "{field} is {value} but {other} is {least}: raise {field} or lower {other}"
                )
            }
            Self::TooLarge { field, value, max } => {
                write!(f, "{field} is {value} but may be at most {max}")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for io::Error {
    fn from(error: ConfigError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}
