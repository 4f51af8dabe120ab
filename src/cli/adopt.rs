//! A service that is started again while its mount goes on: systemd is told of the supervisor that there is.
//!
//! When a supervisor dies, its worker starts another one, which systemd does not take for the service's main process:
//! it starts the service anew. Then there is nothing to mount, and whoever serves must not be disturbed.

use std::ffi::OsStr;
use std::time::Duration;

use super::mountinfo::{self, Pulse};
use super::{Error, complain};
use crate::config::MountConfig;
use crate::control::client::{self, ask};
use crate::control::{Request, Response};
use crate::supervise;

/// systemd sets it for services that tell of themselves (sd_notify(3)).
const NOTIFY_VARIABLE: &str = "NOTIFY_SOCKET";
/// How long the mount may take to say who holds it: a worker may be about to be replaced too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tells systemd of the process that holds the very mount that is asked for; whether there is one.
///
/// # Errors
/// It does not answer.
pub(super) fn by_systemd(config: &MountConfig) -> Result<bool, Error> {
    if std::env::var_os(NOTIFY_VARIABLE).is_none_or(|socket| socket == OsStr::new("")) {
        return Ok(false);
    }
    let place = &config.mountpoint;
    let mounted = mountinfo::at(place).ok().flatten();
    let is_it = mounted.is_some_and(|mounted| mounted.is_ours() && mounted.source == config.spec);
    if !is_it || mountinfo::pulse(place) == Pulse::Dead {
        return Ok(false);
    }
    let status = match ask(&config.socket, &Request::Status, PATIENCE) {
        Ok(Response::Status { status }) => status,
        // Nobody can be asked: what is in the way is told as to anybody else.
        Err(client::Error::NotRunning) => return Ok(false),
        Ok(_) => return Err(Error::new(place.display(), "the mount's answer makes no sense", "see its log")),
        Err(error) => return Err(Error::new(place.display(), error, "see its log")),
    };
    let Some(supervisor) = status.supervisor_pid else { return Ok(false) };
    supervise::announce(supervisor, place);
    complain(&format!("{}: is mounted already; process {supervisor} holds it and goes on", place.display()));
    Ok(true)
}
