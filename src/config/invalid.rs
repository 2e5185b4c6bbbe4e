//! Invalid: why a configuration is refused, with the numbers that do not fit.

use std::fmt;
use std::io;

/// Why a configuration was refused; nothing of it was applied.
///
/// ```
/// use pool_manager::{Config, Manager};
/// let refused = Manager::new(Config::new().min_workers(9).max_workers(3), |_, _| Ok(()));
/// assert_eq!(
///     refused.unwrap_err().to_string(),
///     "min_workers is 9 but max_workers is 3: lower the one or raise the other",
/// );
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConfigError {
    /// More workers are to be kept warm than there may be.
    MinAboveMax {
        /// `min_workers` as given.
        min: usize,
        /// `max_workers` as given.
        max: usize,
    },
    /// A field of a limit is zero, so that nobody would ever be served.
    Zero {
        /// The field's name.
        field: &'static str,
    },
    /// A field is less than another that it has to hold.
    Below {
        /// The field's name.
        field: &'static str,
        /// Its value as given.
        value: usize,
        /// The other field's name.
        other: &'static str,
        /// The other's value, the least that this one may be.
        least: usize,
    },
    /// A field is beyond what the pool can serve.
    TooLarge {
        /// The field's name.
        field: &'static str,
        /// Its value as given.
        value: usize,
        /// The most it may be.
        max: usize,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinAboveMax { min, max } => write!(
                f,
                "min_workers is {min} but max_workers is {max}: lower the one or raise the other"
            ),
            Self::Zero { field } => {
                write!(f, "{field} is 0 but must be at least 1; without rate_limit there is none")
            }
            Self::Below { field, value, other, least } => {
                write!(
                    f,
                    "{field} is {value} but {other} is {least}: raise the one or lower the other"
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
