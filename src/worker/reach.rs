//! The first word with the bucket: before the mount is made, or, where that is wished, some time later.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Worker;
use super::refusal::{self, Error};
use crate::base::caller::{Patience, within};
use crate::config::{MountConfig, OfflineMode};
use crate::oss::{self, Client};
use crate::vfs::Vfs;

/// How long a service that fails is tried where nobody is to wait for it.
const PATIENCE: Patience = Patience::Brief(Duration::from_secs(2));
/// The pause before the bucket is asked again, doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// Asks the bucket before the mount is made, as `--offline` says; whether it has answered.
pub(super) async fn at_start(config: &MountConfig, vfs: &Vfs, client: &Client) -> Result<bool, Error> {
    let asked = match config.offline {
        OfflineMode::Mount => return Ok(false),
        OfflineMode::Wait => tokio::time::timeout(config.mount_timeout, wait(vfs, client)).await,
        OfflineMode::Fail => tokio::time::timeout(config.mount_timeout, within(PATIENCE, vfs.probe())).await,
    };
    match asked {
        Ok(answer) => answer.map(|()| true).map_err(|error| refusal::service(config, &error)),
        Err(_) => {
            let last = client.stats().last_error.map(|(_, error)| error.message);
            Err(refusal::silent(config, last.as_deref()))
        }
    }
}

/// Asks until the bucket answers, however long that takes.
async fn wait(vfs: &Vfs, client: &Client) -> Result<(), oss::Error> {
    let mut pause = PAUSE.0;
    loop {
        match within(PATIENCE, vfs.probe()).await {
            // Nobody but people can make a bad certificate good.
            Err(error) if error.is_outage() && !error.message.contains("certificate") => {
                log::warn!("{error}; waiting for the service");
            }
            other => return other,
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = client.recovered() => {}
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Asks a bucket that the mount did not wait for, until it answers.
pub(super) async fn later(worker: Arc<Worker>) {
    let mut pause = PAUSE.0;
    loop {
        match wait(&worker.vfs, &worker.client).await {
            Ok(()) => break,
            Err(error) => log::error!("the bucket cannot be used: {error}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
    worker.connected.store(true, Ordering::Relaxed);
    worker.vfs.refresh_usage();
}
