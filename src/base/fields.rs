//! What an event is about, beside its words: the operation, the path, the request id, the time it took.
//!
//! Values note their fields while they are written out ([`note`] in a `Display`); whoever writes a line collects them.
//! So every line that has an error in it has its fields too, however the line came about. Outside of [`collect`] a note
//! costs a look at a thread's own memory, and nothing else.
//!
//! Which call of the kernel a thread is at ([`turn_to`]) is a field of every line that it writes meanwhile.

use std::cell::{Cell, RefCell};
use std::fmt;

/// A field's name, and its value as text.
pub type Field = (&'static str, String);

/// The operation of the service by its API name; where none was asked for, the call of the kernel.
pub const OPERATION: &str = "operation";
/// The call of the kernel that it was done for: `read`, `flush`, …
pub const CALL: &str = "call";
/// The key of the object, or the bucket.
pub const PATH: &str = "path";
/// The service's word for a failure.
pub const CODE: &str = "code";
pub const REQUEST_ID: &str = "request_id";
/// Milliseconds.
pub const DURATION: &str = "duration_ms";

thread_local! {
    static NOTED: RefCell<Option<Vec<Field>>> = const { RefCell::new(None) };
    static CALL_NOW: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// From now on this thread works on a call of the kernel, or on none.
pub fn turn_to(call: Option<&'static str>) {
    CALL_NOW.set(call);
}

/// Notes a field, if somebody collects; the first of a name counts.
pub fn note(name: &'static str, value: impl fmt::Display) {
    let wanted =
        NOTED.with_borrow(|noted| noted.as_ref().is_some_and(|noted| noted.iter().all(|(known, _)| *known != name)));
    if !wanted {
        return;
    }
    // Outside of the borrow: it may note something itself.
    let value = value.to_string();
    NOTED.with_borrow_mut(|noted| noted.iter_mut().for_each(|noted| noted.push((name, value.clone()))));
}

/// Does `work`, with the fields that were noted meanwhile.
pub fn collect<T>(work: impl FnOnce() -> T) -> (T, Vec<Field>) {
    let outer = NOTED.replace(Some(Vec::new()));
    let done = work();
    if let Some(call) = CALL_NOW.get() {
        note(CALL, call);
    }
    (done, NOTED.replace(outer).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Noting(u32);

    impl fmt::Display for Noting {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            note(OPERATION, self.0);
            write!(f, "n{}", self.0)
        }
    }

    #[test]
    fn what_is_written_out_notes_its_fields() {
        let (text, fields) = collect(|| format!("{} {}", Noting(1), Noting(2)));
        assert_eq!((text.as_str(), fields), ("n1 n2", vec![(OPERATION, "1".to_owned())]));
        let (inner, outer) = collect(|| {
            note(PATH, Noting(3));
            collect(|| Noting(4).to_string())
        });
        assert_eq!(inner.1, [(OPERATION, "4".to_owned())]);
        assert_eq!(outer, [(OPERATION, "3".to_owned()), (PATH, "n3".to_owned())]);
        note(PATH, "nobody collects");
        assert_eq!(collect(|| ()).1, []);
    }

    #[test]
    fn what_a_thread_is_at_is_a_field_of_all_that_it_writes() {
        turn_to(Some("read"));
        assert_eq!(collect(|| note(PATH, "f")).1, [(PATH, "f".to_owned()), (CALL, "read".to_owned())]);
        turn_to(None);
        assert_eq!(collect(|| ()).1, []);
    }
}
