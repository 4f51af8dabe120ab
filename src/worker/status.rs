//! What `status` tells of a mount.

use std::sync::atomic::Ordering;

use super::{Supervised, Worker};
use crate::base::time::rfc3339;
use crate::control::protocol::{
    BreakerState, LastError, MemoryStatus, MountState, MountStatus, Pending, Recovery, RequestCount, SpillStatus,
    UploadState, UploadStatus,
};
use crate::oss::{self, Stats};
use crate::replay;
use crate::spill::Phase;
use crate::write::FileStatus;

pub(super) fn of(worker: &Worker) -> MountStatus {
    let config = &worker.config;
    let stats = worker.client.stats();
    let engine = worker.drain.engine();
    let live = engine.live();
    let uploads = live.iter().filter_map(|file| upload(&file.status())).collect();
    let gauge = engine.spill().gauge();
    MountStatus {
        mountpoint: config.mountpoint.display().to_string(),
        bucket: config.connection.bucket.clone(),
        prefix: config.connection.prefix.as_str().to_owned(),
        endpoint: config.connection.endpoint.to_string(),
        state: state(worker, &stats),
        supervisor_pid: worker.supervised.as_ref().map(Supervised::supervisor),
        worker_pid: Some(std::process::id()),
        worker_restarts: Some(worker.supervised.as_ref().map_or(0, Supervised::restarts)),
        recovery: worker.transparent.get().map(|transparent| match transparent {
            true => Recovery::Transparent,
            false => Recovery::Remount,
        }),
        started_at: Some(rfc3339(worker.started_at)),
        pending: worker.drain.pending(),
        kept: kept(worker),
        expiring: super::recover::expiring(worker),
        uploads,
        spill: SpillStatus { bytes: Some(gauge.used()), limit: gauge.limit() },
        memory: MemoryStatus { rss: resident(), limit: Some(config.memory_limit) },
        inodes: Some(worker.vfs.inodes() as u64),
        open_handles: Some(worker.vfs.open_handles() as u64),
        hidden_keys: Some(worker.vfs.hidden_keys()),
        retries: Some(stats.retries),
        bytes_up: Some(stats.bytes_up),
        bytes_down: Some(stats.bytes_down),
        last_error: last_error(&stats),
        breaker: Some(match stats.breaker {
            oss::BreakerState::Closed => BreakerState::Closed,
            oss::BreakerState::Open => BreakerState::Open,
            oss::BreakerState::HalfOpen => BreakerState::HalfOpen,
        }),
        degraded_since: stats.degraded_since.map(rfc3339),
        requests: stats
            .requests
            .iter()
            .map(|(operation, counts)| (operation.to_string(), RequestCount { ok: counts.ok, error: counts.error }))
            .collect(),
        ..MountStatus::default()
    }
}

fn state(worker: &Worker, stats: &Stats) -> MountState {
    if worker.drain.is_draining() {
        MountState::Draining
    } else if !worker.connected.load(Ordering::Relaxed) {
        MountState::Offline
    } else if stats.degraded_since.is_some() {
        MountState::Degraded
    } else if worker.config.files.read_only {
        MountState::ReadOnly
    } else {
        MountState::Ok
    }
}

/// Sessions that only `recover` brings further.
fn kept(worker: &Worker) -> Pending {
    let entries = replay::list_sessions(&worker.config.state_folder, &worker.drain.busy()).unwrap_or_else(|error| {
        log::warn!("{error}");
        Vec::new()
    });
    entries.iter().fold(Pending::default(), |sum, entry| Pending {
        files: sum.files + 1,
        bytes: sum.bytes + entry.size.unwrap_or(0),
    })
}

fn upload(status: &FileStatus) -> Option<UploadStatus> {
    let state = match (&status.phase, &status.error) {
        (Phase::Kept(_), _) => return None,
        (_, Some(_)) => UploadState::Failed,
        (Phase::Open, None) => UploadState::Open,
        (Phase::Synced, None) => UploadState::Synced,
        (Phase::Closing, None) => UploadState::Closing,
        (Phase::Completing | Phase::Over, None) => UploadState::Completing,
    };
    Some(UploadStatus {
        session: status.session.to_string(),
        key: status.key.as_ref().map(ToString::to_string).unwrap_or_default(),
        upload_id: status.upload_id.as_ref().map(|id| id.as_str().to_owned()),
        state,
        size: status.size,
        part_size: status.part_size,
        parts_done: status.parts_done,
        parts_total: status.parts_total,
        bytes_done: status.bytes_done,
        created_at: Some(rfc3339(status.created_at)),
        error: status.error.clone(),
    })
}

fn last_error(stats: &Stats) -> Option<LastError> {
    stats.last_error.as_ref().map(|(at, error)| LastError {
        at: Some(rfc3339(*at)),
        operation: Some(error.operation.to_string()),
        key: Some(error.subject.clone()),
        code: error.code.clone(),
        message: Some(error.message.clone()),
        request_id: error.request_id.clone(),
    })
}

/// Bytes of this process in memory.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib: u64 =
        text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}
