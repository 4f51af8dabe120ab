//! The configuration of one mount: resolved, validated, typed. What the rest of the program may see of it.
//!
//! [`options`] is the table of what can be said, [`RawOptions`] what was said and where, and [`MountConfig`] what
//! is meant; nothing below the command line sees a raw value. Parses and checks, but makes no folder and asks no
//! service. Secrets are in [`CredentialSource`] alone, whose debug output hides them.

mod chain;
pub mod endpoint;
mod environment;
mod file;
pub mod options;
mod place;
mod problem;
mod raw;
mod resolve;
mod show;

use std::path::PathBuf;
use std::time::Duration;

pub use environment::Environment;
pub use file::check_file;
pub use place::{Target, absolute_mountpoint, create_private_dir, is_bucket, socket_path, state_folder};
pub use problem::{Problem, did_you_mean, nearest};
pub use raw::{RawOptions, RawValue, Source, parse_mount_options, parse_sloppy_mount_options};
pub use resolve::{Layers, resolve_connection, resolve_mount, resolve_state_parent};
pub use show::{Shown, show};

use crate::base::Prefix;
use crate::credentials::Source as CredentialSource;
use crate::oss::{Addressing, ClientOptions, Credentials, Endpoint, Limits, SignatureVersion};

/// Everything that one mount needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountConfig {
    pub connection: ConnectionConfig,
    /// `BUCKET[:PREFIX]` as it was typed: the source in mountinfo.
    pub spec: String,
    /// Absolute, without symlinks.
    pub mountpoint: PathBuf,
    /// The folder of this bucket and prefix: journal, spill files, log. Absolute; it may not exist yet.
    pub state_folder: PathBuf,
    /// Where the control socket of this mount lies. Absolute; its folder may not exist yet.
    pub socket: PathBuf,
    pub files: FilesConfig,
    pub writing: WritingConfig,
    pub reading: ReadingConfig,
    /// Most bytes of memory for buffers and caches.
    pub memory_limit: u64,
    /// How long mounting may take until the mount answers.
    pub mount_timeout: Duration,
    pub offline: OfflineMode,
    /// Stay in the foreground.
    pub foreground: bool,
    /// A supervisor holds the mount, so that it outlives the process that serves it.
    pub supervised: bool,
    pub log: LogConfig,
}

/// Where the bucket is and how to speak to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionConfig {
    pub endpoint: Endpoint,
    /// General form (`cn-hangzhou`); always there with V4.
    pub region: Option<String>,
    pub bucket: String,
    pub prefix: Prefix,
    pub addressing: Addressing,
    pub signature: SignatureVersion,
    /// Where the access key comes from.
    pub credentials: CredentialSource,
    /// Certificate authorities beside the system's. Absolute.
    pub ca_file: Option<PathBuf>,
    /// How long a try may pass without a byte moved.
    pub try_timeout: Duration,
    /// How long a request is tried from its first failure on.
    pub outage_timeout: Duration,
    pub limits: Limits,
    /// Whether the user has accepted an unencrypted way to another machine.
    pub allow_http: bool,
}

impl ConnectionConfig {
    /// What a client needs, with the keys that were read.
    pub fn client_options(&self, credentials: Credentials) -> ClientOptions {
        ClientOptions {
            endpoint: self.endpoint.clone(),
            bucket: self.bucket.clone(),
            region: self.region.clone(),
            addressing: self.addressing,
            signature: self.signature,
            credentials,
            try_timeout: self.try_timeout,
            outage_timeout: self.outage_timeout,
            limits: self.limits,
        }
    }
}

/// What the files of the mount look like and who may reach them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesConfig {
    pub read_only: bool,
    pub access: Access,
    /// Generic mount options for the kernel, such as `noexec`, in the order they were given.
    pub kernel_flags: Vec<String>,
    /// Mount over a folder that is not empty.
    pub nonempty: bool,
    /// Owner and group where the metadata names none.
    pub uid: u32,
    pub gid: u32,
    /// Permission bits (at most 0777) where the metadata names none; the umask is taken off already.
    pub dir_mode: u32,
    pub file_mode: u32,
    pub metadata: MetadataMode,
    pub symlinks: SymlinkMode,
    /// How old attributes and listings may be before the service is asked again; zero asks every time.
    pub attr_ttl: Duration,
    pub list_ttl: Duration,
    /// Size of the file system in bytes, as `df` shows it.
    pub capacity: u64,
    pub content_type: ContentType,
    /// `x-oss-storage-class` and `x-oss-server-side-encryption` of new objects; `None` leaves it to the bucket.
    pub storage_class: Option<&'static str>,
    pub encryption: Option<&'static str>,
}

/// Who may reach the mount at all, before modes and owners are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The user who mounts.
    Owner,
    /// That user and root.
    OwnerAndRoot,
    Everyone,
}

/// Whether POSIX attributes are kept with the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataMode {
    Posix,
    Plain,
}

/// How new symlinks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymlinkMode {
    /// The target is the object's body.
    Body,
    /// The target is in the object's metadata.
    Meta,
    /// A symlink of the service.
    Native,
}

/// The content type of new objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentType {
    /// By the ending of the name.
    Auto,
    Fixed(String),
}

/// How changes reach the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WritingConfig {
    /// Size of a spill file in bytes, 100 KiB to 1 GiB.
    pub part_size: u64,
    /// Most uploads at a time, at least 1.
    pub upload_workers: usize,
    /// Most bytes in spill files; `None`: half of what is free at the start.
    pub spill_limit: Option<u64>,
    pub close: CloseMode,
    /// How long what was closed locally waits before it is sent.
    pub send_after: Duration,
    /// Files that stay open are sent so long after they began to change; `None`: never.
    pub publish_after: Option<Duration>,
    pub exclusive_create: ExclusiveCreate,
    pub fsync: FsyncMode,
    pub on_kill: OnKill,
    pub recover: RecoverMode,
    /// How long kept sessions stay, at least 1 ms.
    pub recover_keep: Duration,
}

/// What closing a file waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseMode {
    /// The object equals the file.
    Remote,
    /// The bytes are safe on the local disk, and are sent in the background.
    Local,
}

/// Where a file created with `O_EXCL` must be new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExclusiveCreate {
    Local,
    Remote,
}

/// What `fsync` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsyncMode {
    Local,
    Remote,
}

/// What becomes of a file whose writer was killed by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnKill {
    Keep,
    Publish,
}

/// What is done by itself with sessions that a crash left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoverMode {
    /// What was closed or fsynced is completed, the rest kept.
    Safe,
    /// All but what was kept for another reason is completed.
    Publish,
    /// Nothing is completed.
    Keep,
}

/// What mounting does when the service does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfflineMode {
    /// Wait for it, within the mount's timeout.
    Wait,
    /// Mount at once, and connect when it answers.
    Mount,
    Fail,
}

/// How data is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadingConfig {
    /// Most downloads at a time, at least 1.
    pub download_workers: usize,
}

/// Where the log goes, in which form, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// `None` is stderr.
    pub file: Option<PathBuf>,
    pub format: LogFormat,
    pub level: log::LevelFilter,
    /// The config file and its profile, unless a flag, `-o` or the environment says the level.
    pub level_file: Option<(PathBuf, Option<String>)>,
}

impl LogConfig {
    /// The level as the config file says now, or the default where it says none; `None` where a flag, `-o` or the
    /// environment has said it, there is no config file, or that cannot be read.
    pub fn reread_level(&self) -> Option<log::LevelFilter> {
        let (path, profile) = self.level_file.as_ref()?;
        match file::read_level(path, profile.as_deref()) {
            Ok(level) => Some(level),
            Err(problem) => {
                log::warn!("the log level stays: {problem}");
                None
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}
