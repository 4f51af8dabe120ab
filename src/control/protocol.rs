//! The words of the control socket, and the shapes that `--json` prints for scripts.
//!
//! Field names are a promise to users: fields may be added, never renamed or dropped. What is not known is null,
//! never absent. A reader passes over fields that it does not know, so that a newer mount can speak to an older
//! command.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Longest request and longest reply, in bytes with the newline.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
pub const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// What a command asks; one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Answered with [`Response::Status`].
    Status,
    /// Send what is pending, then unmount and end. Answered with [`Response::Progress`] as it goes, and at last
    /// with `Done`, `Busy`, `TimedOut` or `Failed`; after the last three the mount stays.
    Umount {
        /// How long sending may take, in milliseconds.
        timeout_ms: u64,
        /// Detach at once and send nothing; what is pending is kept for the next mount.
        force: bool,
    },
    /// Answered with [`Response::RecoverList`].
    RecoverList,
    /// Replace the mount's processes by the binary on disk. Answered with `Done` once that is begun, or `Failed`.
    Upgrade,
    /// Publish a kept session, at its name or at `key`. Answered with [`Response::Recovered`].
    RecoverPublish { id: String, key: Option<String> },
    /// Write the bytes of a kept session to a new file. Answered with [`Response::Recovered`].
    RecoverExport {
        id: String,
        /// Absolute.
        file: PathBuf,
    },
    /// Take a kept session away for good. Answered with [`Response::Recovered`].
    RecoverDiscard { id: String },
    /// Answered with [`Response::OwnedUploads`].
    OwnedUploads,
    /// Log at this level from now on. Answered with `Done`.
    Log { level: String },
    /// Send everything that was written so far under a path, open or closed. Answered with [`Response::Progress`]
    /// as it goes, and at last with `Done`, `TimedOut` or `Failed`.
    Sync {
        /// From the root of the mount, without slashes at its ends; empty is all of it.
        path: String,
        /// How long it may take, in milliseconds; `None` is as long as it takes.
        timeout_ms: Option<u64>,
    },
}

/// What a mount answers; one line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    Status {
        status: Box<MountStatus>,
    },
    /// Not the last line: what is still to be sent.
    Progress {
        pending: Pending,
    },
    Done,
    /// Somebody uses the mount, so that it cannot be unmounted; it stays.
    Busy,
    /// Time is up; the mount stays.
    TimedOut {
        pending: Pending,
    },
    RecoverList {
        /// The folder whose sessions these are.
        state_folder: PathBuf,
        entries: Vec<RecoverEntry>,
    },
    /// What was asked of a kept session is done.
    Recovered {
        /// Where it was published.
        key: Option<String>,
    },
    /// The uploads that this mount has begun and not ended, or that an earlier one left to it.
    OwnedUploads {
        /// The folder whose journal says so.
        state_folder: PathBuf,
        upload_ids: Vec<String>,
    },
    Failed(Failure),
}

/// Why a request was not done, in the words of an error message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub what: String,
    pub why: String,
    pub mend: String,
}

/// Files and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub files: u64,
    pub bytes: u64,
}

/// Kept sessions whose time is near.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiring {
    pub files: u64,
    pub bytes: u64,
    /// When the first of them goes.
    pub first_at: String,
}

/// What `status --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Of the command.
    pub version: String,
    pub mounts: Vec<MountStatus>,
}

/// One mount as scripts see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountStatus {
    pub mountpoint: String,
    pub bucket: String,
    pub prefix: String,
    pub endpoint: String,
    pub state: MountState,
    pub supervisor_pid: Option<u32>,
    pub worker_pid: Option<u32>,
    pub worker_restarts: Option<u64>,
    pub recovery: Option<Recovery>,
    /// RFC 3339, as all times here.
    pub started_at: Option<String>,
    /// Acknowledged (closed or fsynced) and not yet in the service.
    pub pending: Pending,
    /// Sessions that only `recover` brings further.
    pub kept: Pending,
    /// Of these, what `--recover-keep` takes away within a week; null where nothing is.
    pub expiring: Option<Expiring>,
    pub uploads: Vec<UploadStatus>,
    pub spill: SpillStatus,
    pub cache: CacheStatus,
    pub memory: MemoryStatus,
    pub inodes: Option<u64>,
    pub open_handles: Option<u64>,
    /// Keys that no path can carry, and that are hidden therefore.
    pub hidden_keys: Option<u64>,
    pub breaker: Option<BreakerState>,
    /// By the operation's API name.
    pub requests: BTreeMap<String, RequestCount>,
    pub retries: Option<u64>,
    pub bytes_up: Option<u64>,
    pub bytes_down: Option<u64>,
    pub degraded_since: Option<String>,
    pub last_error: Option<LastError>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountState {
    #[default]
    Ok,
    Degraded,
    Offline,
    Draining,
    ReadOnly,
}

/// What a crash of the serving process means to applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovery {
    Transparent,
    Remount,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerState {
    Closed,
    Open,
    HalfOpen,
}

/// A write session that is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadStatus {
    pub session: String,
    pub key: String,
    pub upload_id: Option<String>,
    pub state: UploadState,
    pub size: u64,
    pub part_size: u64,
    pub parts_done: u64,
    /// Of an open file: the parts begun.
    pub parts_total: u64,
    pub bytes_done: u64,
    pub created_at: Option<String>,
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UploadState {
    Open,
    Synced,
    Closing,
    Completing,
    Failed,
}

/// Bytes on disk for unsent files; no limit is null.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpillStatus {
    pub bytes: Option<u64>,
    pub limit: Option<u64>,
}

/// The disk read cache; all null without one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    pub bytes: Option<u64>,
    pub limit: Option<u64>,
    pub hits: Option<u64>,
    pub misses: Option<u64>,
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    pub rss: Option<u64>,
    pub limit: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCount {
    pub ok: u64,
    pub error: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    pub at: Option<String>,
    pub operation: Option<String>,
    pub key: Option<String>,
    pub code: Option<String>,
    pub message: Option<String>,
    pub request_id: Option<String>,
}

/// A session that waits for a decision; one element of what `recover list --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverEntry {
    /// The session's id, or the name of what lies in quarantine.
    pub id: String,
    pub key: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
    pub state: RecoverState,
    /// A sentence for people.
    pub reason: String,
    pub created_at: Option<String>,
    pub parts_done: Option<u64>,
    pub parts_total: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoverState {
    /// Neither closed nor fsynced, or its writer was killed.
    Kept,
    /// Published beside the object, or held back, because another client changed it.
    Conflict,
    Failed,
    Quarantined,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_idle_mount_has_every_field_and_null_where_nothing_is_known() {
        let report = StatusReport { version: "1".into(), mounts: vec![MountStatus::default()] };
        let wanted = json!({"version": "1", "mounts": [{
            "mountpoint": "", "bucket": "", "prefix": "", "endpoint": "", "state": "ok", "supervisor_pid": null,
            "worker_pid": null, "worker_restarts": null, "recovery": null, "started_at": null,
            "pending": {"files": 0, "bytes": 0}, "kept": {"files": 0, "bytes": 0}, "expiring": null, "uploads": [],
            "spill": {"bytes": null, "limit": null},
            "cache": {"bytes": null, "limit": null, "hits": null, "misses": null},
            "memory": {"rss": null, "limit": null}, "inodes": null, "open_handles": null, "hidden_keys": null,
            "breaker": null, "requests": {}, "retries": null, "bytes_up": null, "bytes_down": null,
            "degraded_since": null, "last_error": null
        }]});
        assert_eq!(serde_json::to_value(report).unwrap(), wanted);
    }

    #[test]
    fn a_busy_mount_keeps_the_names_of_the_contract() {
        let status = MountStatus {
            state: MountState::ReadOnly,
            recovery: Some(Recovery::Transparent),
            uploads: vec![UploadStatus {
                session: "s".into(),
                key: "k".into(),
                upload_id: None,
                state: UploadState::Completing,
                size: 3,
                part_size: 2,
                parts_done: 1,
                parts_total: 2,
                bytes_done: 2,
                created_at: None,
                error: None,
            }],
            breaker: Some(BreakerState::HalfOpen),
            requests: BTreeMap::from([("PutObject".into(), RequestCount { ok: 1, error: 2 })]),
            last_error: Some(LastError { code: Some("AccessDenied".into()), ..LastError::default() }),
            ..MountStatus::default()
        };
        let value = serde_json::to_value(&status).unwrap();
        let upload = json!({"session": "s", "key": "k", "upload_id": null, "state": "completing", "size": 3,
            "part_size": 2, "parts_done": 1, "parts_total": 2, "bytes_done": 2, "created_at": null, "error": null});
        assert_eq!(value["uploads"], json!([upload]));
        assert_eq!(value["requests"], json!({"PutObject": {"ok": 1, "error": 2}}));
        let error = json!({"at": null, "operation": null, "key": null, "code": "AccessDenied", "message": null,
            "request_id": null});
        assert_eq!(value["last_error"], error);
        assert_eq!([&value["state"], &value["recovery"], &value["breaker"]], ["read-only", "transparent", "half-open"]);
        assert_eq!(serde_json::from_value::<MountStatus>(value).unwrap(), status);
    }

    #[test]
    fn recover_entries_keep_the_names_of_the_contract() {
        let entry = RecoverEntry {
            id: "i".into(),
            key: Some("k".into()),
            size: Some(1),
            state: RecoverState::Kept,
            reason: "r".into(),
            created_at: Some("t".into()),
            parts_done: Some(1),
            parts_total: Some(2),
        };
        let wanted = json!({"id": "i", "key": "k", "size": 1, "state": "kept", "reason": "r", "created_at": "t",
            "parts_done": 1, "parts_total": 2});
        assert_eq!(serde_json::to_value(entry).unwrap(), wanted);
    }

    #[test]
    fn requests_and_responses_keep_their_form() {
        let umount = Request::Umount { timeout_ms: 5, force: true };
        let written = [
            serde_json::to_value(Request::Status).unwrap(),
            serde_json::to_value(umount).unwrap(),
            serde_json::to_value(Request::RecoverList).unwrap(),
            serde_json::to_value(Request::Sync { path: "a/b".into(), timeout_ms: None }).unwrap(),
            serde_json::to_value(Response::Done).unwrap(),
            serde_json::to_value(Response::TimedOut { pending: Pending { files: 1, bytes: 2 } }).unwrap(),
            serde_json::to_value(Response::Failed(Failure { what: "a".into(), why: "b".into(), mend: "c".into() }))
                .unwrap(),
        ];
        let wanted = [
            json!({"request": "status"}),
            json!({"request": "umount", "timeout_ms": 5, "force": true}),
            json!({"request": "recover-list"}),
            json!({"request": "sync", "path": "a/b", "timeout_ms": null}),
            json!({"response": "done"}),
            json!({"response": "timed-out", "pending": {"files": 1, "bytes": 2}}),
            json!({"response": "failed", "what": "a", "why": "b", "mend": "c"}),
        ];
        assert_eq!(written, wanted);
    }

    #[test]
    fn an_older_reader_passes_over_new_fields_and_a_newer_one_over_missing_ones() {
        let newer = json!({"response": "status", "status": {"mountpoint": "/m", "colour": "blue"}});
        let Response::Status { status } = serde_json::from_value(newer).unwrap() else { panic!("another response") };
        assert_eq!((status.mountpoint.as_str(), status.state), ("/m", MountState::Ok));
        assert!(serde_json::from_value::<Request>(Value::String("status".into())).is_err());
    }
}
