//! Guard: where a panic of user code ends. One place, for every kind of it.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs user code; `None` if it panicked. What it was in the middle of changing is its own, and
/// ends with its connection.
#[inline(always)]
pub(crate) fn catch<T>(code: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(code)).map_err(discard).ok()
}

/// Drops what is the user's, and may panic when it is dropped.
pub(crate) fn drop_catching<T>(of: T) {
    catch(|| drop(of));
}

/// The payload of a panic is the user's as well, and may panic when it is dropped.
#[cold]
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(again);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::panic_any;

    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("and again");
        }
    }

    #[test]
    fn a_panic_ends_here_even_if_its_payload_panics_again() {
        assert_eq!(catch(|| 7), Some(7));
        assert_eq!(catch(|| panic!("once")), None::<()>);
        assert_eq!(catch(|| panic_any(Bomb)), None::<()>);
    }
}
