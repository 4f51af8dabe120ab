//! What can go wrong in a file system call, in words; the numbers are the business of `fuse::errno`.

use crate::base::KeyError;
use crate::base::caller::Cut;
use crate::intent::MoveError;
use crate::oss;
use crate::read::ReadError;
use crate::spill::SpillError;
use crate::write::WriteError;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    #[error("no such file or directory")]
    NotFound,
    #[error("it exists already")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("the handle or inode is not known any more")]
    Stale,
    #[error("the mount is read-only")]
    ReadOnly,
    #[error("cannot be kept by this mount")]
    NotPermitted,
    #[error("not supported")]
    Unsupported,
    #[error("no such extended attribute")]
    NoData,
    #[error("the object's metadata are full")]
    NoSpace,
    #[error("invalid argument")]
    Invalid,
    /// The move of a directory that it touches is not finished.
    #[error("a directory is still being moved")]
    Busy,
    /// The file has got another name meanwhile, by our own doing: look again.
    #[error("renamed meanwhile")]
    Moved,
    /// Its attributes are being stored: no write session may begin until that is done.
    #[error("its attributes are being stored")]
    Copying,
    #[error("bad handle")]
    BadHandle,
    #[error(transparent)]
    Name(#[from] KeyError),
    /// The call was interrupted, or took too long.
    #[error(transparent)]
    Cut(#[from] Cut),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Oss(#[from] oss::Error),
}

impl FsError {
    /// Whether its words tell which object it is about.
    pub fn names_its_object(&self) -> bool {
        matches!(self, Self::Oss(_) | Self::Write(WriteError::Oss(_)) | Self::Read(ReadError::Oss(_)))
    }

    /// Whether the service did not answer, or not in time.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Oss(error) | Self::Read(ReadError::Oss(error)) => error.is_outage(),
            Self::Cut(cut) => *cut == Cut::TimedOut,
            _ => false,
        }
    }
}

impl From<MoveError> for FsError {
    fn from(error: MoveError) -> Self {
        match error {
            MoveError::Key { error, .. } => error.into(),
            MoveError::Oss(error) => error.into(),
        }
    }
}

impl From<SpillError> for FsError {
    fn from(error: SpillError) -> Self {
        WriteError::from(error).into()
    }
}
