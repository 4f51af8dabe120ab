//! A mount without a supervisor that dies at a point, and the next ones, until all is settled.
//!
//! Quick, as there are many: everything is asked by sockets in this process, nothing is waited for longer than needed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ossfuse::base::{Prefix, crc64};
use ossfuse::config::{socket_path, state_folder};
use ossfuse::control::client::ask;
use ossfuse::control::{MountStatus, RecoverEntry, Request, Response};
use ossfuse::replay::list_offline;

use crate::harness::{BUCKET, Bench, Mount, detach, end_with_parent, is_mounted};

/// Longest that anything here is waited for.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
pub(super) const LOOK: Duration = Duration::from_millis(2);

/// What a bucket holds: size, CRC64 and mode (where it matters) by key.
pub(super) type State = BTreeMap<String, Object>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    bytes: Vec<u8>,
    mode: Option<u32>,
}

impl Object {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, mode: None }
    }

    pub(super) fn has(&self, bytes: &[u8]) -> bool {
        self.bytes == bytes
    }

    pub(super) fn with_mode(self, mode: u32) -> Self {
        Self { mode: Some(mode), ..self }
    }
}

/// How a process of the mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// At the point that was armed.
    Died,
    /// The point was not met.
    Alive,
}

/// A prefix of the bucket of its own, with a state folder.
pub(super) struct Rig<'b> {
    bench: &'b Bench,
    prefix: String,
    path: PathBuf,
    options: Vec<String>,
    log: PathBuf,
    supervised: bool,
}

/// A process that serves the mount.
pub(super) struct Process<'r, 'b> {
    rig: &'r Rig<'b>,
    child: Child,
}

impl<'b> Rig<'b> {
    pub(super) fn new(bench: &'b Bench, options: Vec<String>, before: &State) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("r{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        for (key, object) in before {
            bench.server.put(&format!("{prefix}/{key}"), &object.bytes);
        }
        let path = bench.folder(&format!("mnt-{prefix}"));
        let log = path.with_extension("log");
        Self { bench, prefix, path, options, log, supervised: false }
    }

    /// The same, whose mounts outlive the process that serves them.
    pub(super) fn supervised(mut self) -> Self {
        self.supervised = true;
        self
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn arm_file(&self) -> PathBuf {
        self.path.with_extension("crash")
    }

    /// Names that were passed under `trace`.
    pub(super) fn passed(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path.with_extension("met")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Has the next process that comes to a point die there; or the one that lives.
    pub(super) fn arm(&self, what: &str) {
        let new = self.path.with_extension("new");
        fs::write(&new, what).unwrap();
        fs::rename(new, self.arm_file()).unwrap();
    }

    pub(super) fn disarm(&self) {
        drop(fs::remove_file(self.arm_file()));
    }

    pub(super) fn is_armed(&self) -> bool {
        self.arm_file().exists()
    }

    /// Starts a process, and waits until the mount answers; `None` where it died before.
    pub(super) fn start(&self) -> Option<Process<'_, 'b>> {
        let spec = format!("{BUCKET}:{}", self.prefix);
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        let mut command = Mount::command(self.bench, &spec, &self.path, &options);
        let log = fs::File::options().append(true).create(true).open(&self.log).unwrap();
        command.arg("--foreground").args((!self.supervised).then_some("--no-supervisor"));
        command.env("_OSSFUSE_CRASH_FILE", self.arm_file());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        end_with_parent(&mut command);
        let mut process = Process { rig: self, child: command.spawn().unwrap() };
        let begun = Instant::now();
        while !(is_mounted(&self.path) && process.status().is_some()) {
            if let Some(status) = process.child.try_wait().unwrap() {
                assert!(!self.is_armed(), "the mount ended by itself: {status}\n{}", self.told());
                process.clear_away();
                return None;
            }
            assert!(begun.elapsed() < DEADLINE, "the mount does not come up\n{}", self.told());
            std::thread::sleep(LOOK);
        }
        Some(process)
    }

    fn state_folder(&self) -> PathBuf {
        state_folder(&self.bench.path("state"), BUCKET, &Prefix::parse(&self.prefix).unwrap())
    }

    /// The sessions on the disk.
    pub(super) fn kept(&self) -> Vec<RecoverEntry> {
        list_offline(&self.state_folder()).unwrap()
    }

    /// What is left in the state folder and in the bucket that should go by itself.
    pub(super) fn leftovers(&self) -> Vec<String> {
        let names = |folder: &str| -> Vec<String> {
            let entries = fs::read_dir(self.state_folder().join(folder)).into_iter().flatten().flatten();
            entries.map(|entry| format!("{folder}/{}", entry.file_name().to_string_lossy())).collect()
        };
        let mut left = names("intents");
        left.extend(names("quarantine"));
        let hidden = format!("{}/.ossfuse-tmp/", self.prefix);
        // Those of kept sessions hold their bytes.
        let kept = self.kept();
        let is_kept = |key: &str| kept.iter().any(|entry| key.contains(&entry.id));
        left.extend(self.keys().into_iter().filter(|key| key.starts_with(&hidden) && !is_kept(key)));
        left
    }

    /// Uploads that stand in the bucket under the prefix: key, id and number of parts.
    pub(super) fn uploads(&self) -> Vec<(String, String, usize)> {
        let own = |upload: &serde_json::Value| {
            let key = upload["key"].as_str().unwrap().strip_prefix(&format!("{}/", self.prefix))?.to_owned();
            let id = upload["upload_id"].as_str().unwrap().to_owned();
            Some((key, id, upload["parts"].as_array().unwrap().len()))
        };
        self.bench.server.uploads().iter().filter_map(own).collect()
    }

    fn objects(&self) -> Vec<serde_json::Value> {
        self.bench.server.objects_under(&format!("{}/", self.prefix))
    }

    fn keys(&self) -> Vec<String> {
        self.objects().iter().map(|object| object["key"].as_str().unwrap().to_owned()).collect()
    }

    /// Whether the bucket holds exactly this. Passing keys of the program's own do not count.
    pub(super) fn holds(&self, state: &State) -> bool {
        let hidden = format!("{}/.ossfuse-tmp/", self.prefix);
        let found = self.objects();
        let found: Vec<_> = found.iter().filter(|o| !o["key"].as_str().unwrap().starts_with(&hidden)).collect();
        found.len() == state.len()
            && state.iter().all(|(key, wanted)| {
                let key = format!("{}/{key}", self.prefix);
                let same = |object: &&&serde_json::Value| {
                    object["key"] == key.as_str()
                        && object["size"] == wanted.bytes.len() as u64
                        && object["crc64"] == crc64::checksum(&wanted.bytes).to_string().as_str()
                        && wanted.mode.is_none_or(|mode| mode_of(object).is_some_and(|found| found & 0o7777 == mode))
                };
                found.iter().any(|object| same(&object))
            })
    }

    /// What the bucket holds, for messages.
    pub(super) fn shown(&self) -> String {
        let objects = self.objects();
        let line = |o: &serde_json::Value| format!("{} {} {}", o["key"], o["size"], o["meta"]);
        objects.iter().map(line).collect::<Vec<_>>().join("; ")
    }

    /// Another client writes an object.
    pub(super) fn put(&self, key: &str, bytes: &[u8]) {
        self.bench.server.put(&format!("{}/{key}", self.prefix), bytes);
    }

    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.bench.server.get(&format!("{}/{key}", self.prefix))
    }

    pub(super) fn all_keys(&self) -> Vec<String> {
        let prefix = format!("{}/", self.prefix);
        self.keys().iter().map(|key| key.strip_prefix(&prefix).unwrap().to_owned()).collect()
    }

    /// The logs of all its processes.
    pub(super) fn told(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn mode_of(object: &serde_json::Value) -> Option<u32> {
    object["meta"]["mode"].as_str()?.parse().ok()
}

impl Drop for Rig<'_> {
    /// What is left would make every listing longer.
    fn drop(&mut self) {
        for key in self.keys() {
            self.bench.server.delete(&key);
        }
        drop(fs::remove_dir_all(self.state_folder()));
    }
}

impl Process<'_, '_> {
    fn ask(&self, request: &Request) -> Option<Response> {
        // SAFETY: reads this process's id.
        let is_root = unsafe { libc::geteuid() } == 0;
        let run = if is_root { PathBuf::from("/run") } else { self.rig.bench.path("run") };
        ask(&socket_path(&run.join("ossfuse"), &self.rig.path), request, DEADLINE).ok()
    }

    pub(super) fn status(&self) -> Option<MountStatus> {
        match self.ask(&Request::Status)? {
            Response::Status { status } => Some(*status),
            other => panic!("{other:?}"),
        }
    }

    /// The uploads that belong to its sessions.
    pub(super) fn owned_uploads(&self) -> Option<Vec<String>> {
        match self.ask(&Request::OwnedUploads)? {
            Response::OwnedUploads { upload_ids, .. } => Some(upload_ids),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Has everything sent; whether that was done.
    pub(super) fn sync(&self) -> bool {
        let request = Request::Sync { path: String::new(), timeout_ms: Some(DEADLINE.as_millis() as u64) };
        // SAFETY: reads this process's id.
        let is_root = unsafe { libc::geteuid() } == 0;
        let run = if is_root { PathBuf::from("/run") } else { self.rig.bench.path("run") };
        let socket = socket_path(&run.join("ossfuse"), &self.rig.path);
        let Ok(mut client) = ossfuse::control::client::Client::connect(&socket) else { return false };
        if client.send(&request).is_err() {
            return false;
        }
        loop {
            match client.receive(DEADLINE) {
                Ok(Response::Progress { .. }) => {}
                Ok(Response::Done) => return true,
                _ => return false,
            }
        }
    }

    /// Waits until nothing is to come of it, or it has died.
    pub(super) fn settle(&mut self, is_done: impl Fn(&Self) -> bool) -> Option<End> {
        let begun = Instant::now();
        loop {
            let quiet = self.status().is_some_and(|status| status.pending.files == 0 && status.open_handles == Some(0));
            if quiet && is_done(self) {
                return Some(End::Alive);
            }
            if !self.is_alive() {
                return Some(End::Died);
            }
            if begun.elapsed() > DEADLINE / 6 {
                return None;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Kills it, if it lives, and takes the mount away.
    pub(super) fn kill(mut self) {
        self.clear_away();
    }

    fn clear_away(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        detach(&self.rig.path);
        self.rig.bench.server.let_the_dead_go();
    }
}

impl Drop for Process<'_, '_> {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        detach(&self.rig.path);
    }
}
