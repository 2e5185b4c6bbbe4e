//! Catches panics of user code. No other module catches panics.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs user code. Returns the result of the code, or `None` if the code panicked. A panic may
/// leave the session or the handler half changed. Both belong to the user. The session is dropped
/// with its connection.
#[inline(always)]
pub(crate) fn catch<T>(code: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(code)).map_err(discard).ok()
}

/// Drops a value of the user. If dropping it panics, the panic is caught.
pub(crate) fn drop_catching<T>(of: T) {
    catch(|| drop(of));
}

/// Drops the payload of a panic. The payload is a user's value too, and may panic when it is
/// dropped.
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
            panic!("second panic");
        }
    }

    #[test]
    fn a_panic_is_caught_even_if_dropping_its_payload_panics() {
        assert_eq!(catch(|| 7), Some(7));
        assert_eq!(catch(|| panic!("first panic")), None::<()>);
        assert_eq!(catch(|| panic_any(Bomb)), None::<()>);
    }
}
