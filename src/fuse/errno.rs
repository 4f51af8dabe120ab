//! The only place where a failure becomes an errno, with the reason where the choice is arguable (contract §4).

use fuser::Errno;

use crate::base::KeyError;
use crate::base::caller::Cut;
use crate::oss::{self, ErrorKind};
use crate::read::ReadError;
use crate::vfs::FsError;
use crate::write::WriteError;

/// The number that an application gets.
pub(super) fn errno(error: &FsError) -> Errno {
    Errno::from_i32(number(error))
}

fn number(error: &FsError) -> i32 {
    match error {
        FsError::NotFound => libc::ENOENT,
        FsError::Exists => libc::EEXIST,
        FsError::NotDirectory => libc::ENOTDIR,
        FsError::IsDirectory => libc::EISDIR,
        FsError::NotEmpty => libc::ENOTEMPTY,
        FsError::Stale | FsError::Moved => libc::ESTALE,
        FsError::ReadOnly => libc::EROFS,
        FsError::NotPermitted => libc::EPERM,
        FsError::Unsupported => libc::EOPNOTSUPP,
        FsError::NoData => libc::ENODATA,
        FsError::NoSpace => libc::ENOSPC,
        FsError::Invalid => libc::EINVAL,
        FsError::Busy => libc::EBUSY,
        FsError::Copying => libc::EAGAIN,
        FsError::BadHandle => libc::EBADF,
        FsError::Name(error) => of_key(*error),
        FsError::Cut(cut) | FsError::Read(ReadError::Cut(cut)) => of_cut(*cut),
        FsError::Write(error) => of_write(error),
        FsError::Read(ReadError::Stale) => libc::ESTALE,
        FsError::Read(ReadError::Corrupt) => libc::EIO,
        FsError::Read(ReadError::Oss(error)) => of_service(error, libc::ETIMEDOUT),
        FsError::Oss(error) => of_service(error, libc::ETIMEDOUT),
    }
}

fn of_cut(cut: Cut) -> i32 {
    match cut {
        Cut::Interrupted => libc::EINTR,
        Cut::TimedOut => libc::ETIMEDOUT,
    }
}

fn of_key(error: KeyError) -> i32 {
    match error {
        KeyError::TooLong => libc::ENAMETOOLONG,
        KeyError::NotUtf8 => libc::EILSEQ,
        KeyError::Empty | KeyError::BadStart | KeyError::BadName => libc::EINVAL,
    }
}

fn of_write(error: &WriteError) -> i32 {
    match error {
        WriteError::Retired => libc::EIO,
        WriteError::TooLarge => libc::EFBIG,
        WriteError::Spill { errno, .. } => errno.unwrap_or(libc::EIO),
        WriteError::Stale => libc::ESTALE,
        WriteError::Taken => libc::EEXIST,
        WriteError::Lost => libc::EIO,
        WriteError::Cut(cut) => of_cut(*cut),
        // The bytes are kept and go on in the background: what failed is this call, not a time limit of its own.
        WriteError::Oss(error) => of_service(error, libc::EIO),
    }
}

/// `unreachable` is what a service that does not answer comes to.
fn of_service(error: &oss::Error, unreachable: i32) -> i32 {
    match error.kind {
        ErrorKind::NoSuchKey => libc::ENOENT,
        ErrorKind::AlreadyExists => libc::EEXIST,
        ErrorKind::AccessDenied | ErrorKind::Credentials | ErrorKind::Archived => libc::EACCES,
        ErrorKind::PreconditionFailed => libc::ESTALE,
        ErrorKind::TooLarge => libc::EFBIG,
        ErrorKind::InvalidArgument | ErrorKind::Unsendable => libc::EINVAL,
        ErrorKind::Unsupported => libc::EOPNOTSUPP,
        ErrorKind::Quota => libc::EDQUOT,
        ErrorKind::Interrupted => libc::EINTR,
        ErrorKind::Transport | ErrorKind::Server | ErrorKind::Throttled => unreachable,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_errors_keep_their_number() {
        let full = WriteError::Spill { message: String::new(), errno: Some(libc::ENOSPC) };
        assert_eq!(number(&full.into()), libc::ENOSPC);
        assert_eq!(number(&FsError::Name(KeyError::NotUtf8)), libc::EILSEQ);
        assert_eq!(number(&WriteError::Stale.into()), libc::ESTALE);
    }
}
