//! What a system call has returned, as a result.

use std::io;

/// The number that a call of the C library has returned, unless that tells of a failure. To be asked before anything
/// else is called: why it failed stands in `errno`. Allocates nothing, so that it may be used between fork and exec.
///
/// # Errors
/// It is negative (as in `intro(2)`): the error that `errno` names.
pub fn checked<T: PartialOrd + Default>(returned: T) -> io::Result<T> {
    if returned < T::default() { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_with_its_reason() {
        // SAFETY: plain numbers.
        let done = |fd| checked(unsafe { libc::fcntl(fd, libc::F_GETFD) });
        assert_eq!(done(-1).map_err(|error| error.raw_os_error()), Err(Some(libc::EBADF)));
        assert!(done(libc::STDERR_FILENO).is_ok());
        assert_eq!(checked(7_isize).ok(), Some(7));
    }
}
