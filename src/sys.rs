//! The [`Backend`] trait and its two implementations: the operating system and the simulated
//! network.

mod backend;
mod oneshot;
mod os;
#[cfg(feature = "sim")]
pub mod sim;
pub(crate) mod unix_path;

pub use backend::{Backend, Event, ListenSocket, Wake};
pub use os::Os;
