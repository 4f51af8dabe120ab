//! The `ossfuse` command: sets up TLS, hands the arguments on, and ends with the status that comes back.

use std::process::ExitCode;

/// See there: a worker may be killed at any instant without any request being lost.
#[global_allocator]
static ALLOCATOR: ossfuse::fuse::TouchedBuffers = ossfuse::fuse::TouchedBuffers;

fn main() -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        log::debug!("a TLS provider is installed already");
    }
    if let Some(status) = ossfuse::worker::probe_if_asked() {
        return status;
    }
    if let Some(status) = ossfuse::worker::tell_formats_if_asked() {
        return status;
    }
    if let Some(status) = ossfuse::cli::supervise_if_asked() {
        return status;
    }
    if let Some(status) = ossfuse::cli::work_if_asked() {
        return status;
    }
    ossfuse::cli::run(std::env::args_os())
}
