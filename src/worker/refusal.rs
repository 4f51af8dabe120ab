//! Why a mount does not come up, each in one line: `WHAT: WHY; MEND`.

use std::io;

use super::ConnectError;
use crate::base::units::format_duration;
use crate::config::MountConfig;
use crate::fuse::MountError;
use crate::oss::{self, ErrorKind};
use crate::replay::ReplayError;
use crate::spill::LockError;

/// Why a mount could not be served, as `WHAT: WHY; MEND`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

fn line(what: impl std::fmt::Display, why: impl std::fmt::Display, mend: &str) -> Error {
    Error(format!("{what}: {why}; {mend}"))
}

/// A line that is ready.
pub(super) fn told(line: String) -> Error {
    Error(line)
}

pub(super) fn io(what: &str, error: &io::Error) -> Error {
    line(what, error, "see the log")
}

pub(super) fn lock(error: &LockError) -> Error {
    match error {
        LockError::Busy { path, owner } => line(
            path.display(),
            format!("the state folder is in use by {owner}"),
            "unmount that first, or choose another --state-dir",
        ),
        LockError::Spill(error) => line("the state folder", error, "see --state-dir"),
    }
}

/// The service did not answer; `error` is what it failed with last, if anything came at all.
pub(super) fn silent(config: &MountConfig, error: Option<&str>) -> Error {
    let within = format_duration(config.mount_timeout);
    let why = match error {
        Some(error) if error.contains("certificate") => return certificate(config, error),
        Some(error) => format!("cannot be reached within {within}: {error}"),
        None => format!("no answer within {within}"),
    };
    line(&config.connection.endpoint, why, "check --endpoint and the network")
}

pub(super) fn connection(config: &MountConfig, error: &ConnectError) -> Error {
    match error {
        ConnectError::Client(error) => service(config, error),
        other => Error(other.to_string()),
    }
}

pub(super) fn service(config: &MountConfig, error: &oss::Error) -> Error {
    let bucket = &config.connection.bucket;
    let endpoint = &config.connection.endpoint;
    let told = error.code.as_deref().unwrap_or(&error.message);
    if let Some(right) = &error.endpoint {
        return line(bucket, format!("the bucket is not at {endpoint}"), &format!("use --endpoint {right}"));
    }
    match error.kind {
        ErrorKind::NoSuchBucket => line(bucket, "there is no such bucket", "check its name and the region"),
        ErrorKind::Credentials => line(
            bucket,
            format!("the access key was refused ({told})"),
            "check OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET",
        ),
        ErrorKind::AccessDenied => {
            line(bucket, format!("access denied ({told})"), "the key needs oss:ListObjects on the bucket")
        }
        ErrorKind::Transport if error.message.contains("certificate") => certificate(config, &error.message),
        ErrorKind::Transport => {
            line(endpoint, format!("cannot be reached: {}", error.message), "check --endpoint and the network")
        }
        _ => line(bucket, error, "check --endpoint and --region"),
    }
}

fn certificate(config: &MountConfig, message: &str) -> Error {
    let why = format!("its certificate is not accepted: {message}");
    line(&config.connection.endpoint, why, mend_of_tls(message))
}

/// What to do about a certificate, by the words of the TLS library.
fn mend_of_tls(message: &str) -> &'static str {
    if message.contains("Expired") || message.contains("expired") || message.contains("NotValidYet") {
        "have it renewed, and check the clock of this machine"
    } else if message.contains("NotValidForName") || message.contains("not valid for name") {
        "check the host in --endpoint; it must be one that the certificate names"
    } else {
        "trust its authority with --ca-file PEM, if it is yours"
    }
}

pub(super) fn replay(config: &MountConfig, error: &ReplayError) -> Error {
    let mend = match error {
        ReplayError::Newer(_) => "use the newer version, or another --state-dir",
        ReplayError::Spill(_) => "see --state-dir",
    };
    line(config.state_folder.display(), error, mend)
}

pub(super) fn mount(config: &MountConfig, error: &MountError) -> Error {
    let mend = match error {
        MountError::Device(_) => "load the fuse module, or give the container /dev/fuse",
        _ => "check the mount point and your rights",
    };
    line(config.mountpoint.display(), error, mend)
}
