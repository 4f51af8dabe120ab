//! The one table of options: name, kind, default and help of each.
//!
//! The command line, `-o`, the environment, the config file, their help and their error messages are all made from
//! it, so none of them can drift. What the values mean together is left to `resolve`.
//! A default stands here as text and takes the same way through the parser as a value that somebody typed.

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Yes or no; the bare name means yes.
    Flag,
    Text,
    Path,
    /// Bytes, as [`crate::base::units::parse_size`] reads them.
    Size,
    /// As [`crate::base::units::parse_duration`] reads it.
    Duration,
    /// So many bytes, or things, a second: `…/s`.
    Rate,
    Number,
    /// Permission bits, octal.
    Mode,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// Which commands take an option, and the heading it stands under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Taken by every command.
    Everywhere,
    Service,
    Credentials,
    Files,
    Writing,
    Reading,
    Limits,
    Running,
    /// A key of the config file only: secrets have no place on a command line.
    FileOnly,
    /// Generic words of `-o` that go to the kernel as they are.
    MountOptionOnly,
}

impl Group {
    /// The heading in the help.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Everywhere => "Configuration",
            Self::Service => "Service",
            Self::Credentials => "Credentials",
            Self::Files => "Files",
            Self::Writing => "Writing",
            Self::Reading => "Reading",
            Self::Limits => "Limits",
            Self::Running => "Running",
            Self::FileOnly => "Config file only",
            Self::MountOptionOnly => "-o only",
        }
    }
}

/// One option.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// The long name without dashes.
    pub name: &'static str,
    /// The one-letter name on the command line.
    pub short: Option<char>,
    pub group: Group,
    pub kind: Kind,
    /// What the help calls the value.
    pub value_name: &'static str,
    /// As it would be typed.
    pub default: Option<&'static str>,
    pub help: &'static str,
    /// A variable that other programs for the service read too; `OSSFUSE_…` goes before it.
    pub shared_variable: Option<&'static str>,
}

impl OptionSpec {
    /// `OSSFUSE_PART_SIZE` for `part-size`.
    pub fn variable(&self) -> String {
        format!("OSSFUSE_{}", self.name.replace('-', "_").to_ascii_uppercase())
    }

    /// Whether it is part of an access key: never on a command line, in the environment under its shared name.
    pub fn is_credential(&self) -> bool {
        self.group == Group::FileOnly
    }

    /// Whether it has a flag, a variable, and a name in `-o`.
    pub fn is_typed(&self) -> bool {
        !matches!(self.group, Group::FileOnly | Group::MountOptionOnly)
    }

    /// Whether a config file that holds it must be its owner's alone.
    pub fn is_secret(&self) -> bool {
        self.is_credential() && self.name != ACCESS_KEY_ID.name
    }
}

/// Finds an option by its long name.
pub fn find(name: &str) -> Option<&'static OptionSpec> {
    OPTIONS.iter().copied().find(|spec| spec.name == name)
}

macro_rules! options {
    ($($id:ident = $name:literal, $group:ident, $kind:expr, $value_name:literal, $default:expr, $help:literal
        $(, short $short:literal)? $(, variable $variable:literal)?;)*) => {
        $(pub const $id: OptionSpec = OptionSpec {
            name: $name,
            short: options!(@option $($short)?),
            group: Group::$group,
            kind: $kind,
            value_name: $value_name,
            default: $default,
            help: $help,
            shared_variable: options!(@option $($variable)?),
        };)*
        /// All of them, in the order of the help.
        pub const OPTIONS: &[&OptionSpec] = &[$(&$id),*];
    };
    (@option) => { None };
    (@option $value:literal) => { Some($value) };
}

use Kind::{Choice, Duration, Flag, Mode, Number, Path, Rate, Size, Text};

options! {
    CONFIG = "config", Everywhere, Path, "FILE", None,
        "Read this config file instead of ~/.config/ossfuse/config.toml or /etc/ossfuse/config.toml";
    PROFILE = "profile", Everywhere, Text, "NAME", None,
        "Let the keys under [profile.NAME] of the config file go before those at its top";
    STATE_DIR = "state-dir", Everywhere, Path, "DIR", None,
        "Where unsent files, their journal and the log live, in a folder for each bucket and prefix \
         [default: /var/lib/ossfuse for root, else ~/.local/state/ossfuse]";

    ENDPOINT = "endpoint", Service, Text, "URL", None,
        "Address of the service, such as https://oss-cn-hangzhou.aliyuncs.com; follows from --region",
        variable "OSS_ENDPOINT";
    REGION = "region", Service, Text, "ID", None,
        "Region of the bucket, such as cn-hangzhou; follows from the host of --endpoint",
        variable "OSS_REGION";
    INTERNAL = "internal", Service, Flag, "", None,
        "Use the intranet endpoint: free of traffic fees, reachable from servers in the same region only";
    PATH_STYLE = "path-style", Service, Choice(&["auto", "on", "off"]), "auto|on|off", Some("auto"),
        "Put the bucket into the path of the URL, not into the host; auto does so for IP addresses and localhost";
    CNAME = "cname", Service, Flag, "", None,
        "The endpoint is a domain of your own that is bound to the bucket";
    CA_FILE = "ca-file", Service, Path, "PEM", None,
        "Trust the certificate authorities in this file too, beside those of the system";
    ALLOW_HTTP = "allow-http", Service, Flag, "", None,
        "Accept an http:// endpoint that is not on this machine: data and listings cross the network unencrypted";
    SIGNATURE = "signature", Service, Choice(&["v4", "v1"]), "v4|v1", Some("v4"),
        "How requests are signed; where no region can be known, v1 is used";
    STORAGE_CLASS = "storage-class", Service,
        Choice(&["Standard", "IA", "Archive", "ColdArchive", "DeepColdArchive"]), "CLASS", None,
        "Storage class of new objects: Standard, IA, Archive, ColdArchive or DeepColdArchive [default: the bucket's]";
    SSE = "sse", Service, Choice(&["AES256", "KMS", "SM4"]), "METHOD", None,
        "Have the service encrypt new objects: AES256, KMS or SM4 [default: the bucket's]";
    CONTENT_TYPE = "content-type", Service, Text, "auto|TYPE", Some("auto"),
        "Content type of new objects; auto goes by the ending of the name";

    CREDENTIALS = "credentials", Credentials,
        Choice(&["auto", "env", "file", "ecs-role", "oidc", "process", "anonymous"]),
        "auto|env|file|ecs-role|oidc|process|anonymous", Some("auto"),
        "Where the access key comes from: OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET and OSS_SESSION_TOKEN (env), \
         the keys access-key-id, access-key-secret and security-token of the config file, else --credentials-file \
         (file), the role of the ECS instance (ecs-role), AssumeRoleWithOIDC (oidc), --credential-process (process), \
         nowhere (anonymous), or the first of these that is there (auto)";
    CREDENTIALS_FILE = "credentials-file", Credentials, Path, "PATH", None,
        "A file with the access key, as ossfuse, ossutil, the aliyun CLI, the SDKs or ossfs write it, or a directory \
         of rotated files; a change is picked up";
    CREDENTIAL_PROCESS = "credential-process", Credentials, Text, "CMD", None,
        "A command that prints the access key as JSON; run again before the key ends";
    ROLE_NAME = "role-name", Credentials, Text, "NAME", None,
        "The RAM role of the ECS instance whose access key is used [default: the one it has]";
    ACCESS_KEY_ID = "access-key-id", FileOnly, Text, "ID", None, "The id of the access key",
        variable "OSS_ACCESS_KEY_ID";
    ACCESS_KEY_SECRET = "access-key-secret", FileOnly, Text, "SECRET", None, "Its secret",
        variable "OSS_ACCESS_KEY_SECRET";
    SECURITY_TOKEN = "security-token", FileOnly, Text, "TOKEN", None, "The token of a temporary access key",
        variable "OSS_SESSION_TOKEN";

    KERNEL_FLAGS = "kernel-flags", MountOptionOnly, Text, "", None,
        "exec, noexec, suid, nosuid, dev, nodev, atime, noatime, relatime: as for every file system";
    READ_ONLY = "read-only", Files, Flag, "", None, "Refuse every change";
    ALLOW_OTHER = "allow-other", Files, Flag, "", None,
        "Let every user of this machine in, as far as modes and owners allow";
    ALLOW_ROOT = "allow-root", Files, Flag, "", None, "Let root in besides the user who mounts";
    NONEMPTY = "nonempty", Files, Flag, "", None, "Mount over a folder that has files in it, hiding them";
    UID = "uid", Files, Number, "UID", None,
        "Owner of files whose metadata names none [default: whoever mounts]";
    GID = "gid", Files, Number, "GID", None,
        "Group of files whose metadata names none [default: that of whoever mounts]";
    UMASK = "umask", Files, Mode, "MODE", Some("022"),
        "Permission bits taken from 0666 and 0777 for files and folders whose metadata names no mode";
    DIR_MODE = "dir-mode", Files, Mode, "MODE", None,
        "Mode of folders whose metadata names none [default: 0777 less the umask: 0755]";
    FILE_MODE = "file-mode", Files, Mode, "MODE", None,
        "Mode of files whose metadata names none [default: 0666 less the umask: 0644]";
    METADATA = "metadata", Files, Choice(&["posix", "plain"]), "posix|plain", Some("posix"),
        "Keep modes, owners, times and links with the objects (posix), or ask and store nothing of the kind (plain)";
    SYMLINKS = "symlinks", Files, Choice(&["ossfs1", "meta", "native"]), "ossfs1|meta|native", Some("ossfs1"),
        "How new symlinks are kept, all forms being read: the target as the object's body (ossfs1) or in its metadata \
         (meta), or a symlink of the service, for relative targets within the mount (native)";
    ATTR_TTL = "attr-ttl", Files, Duration, "TIME", Some("60s"),
        "How old the attributes of a file may be before the service is asked again";
    LIST_TTL = "list-ttl", Files, Duration, "TIME", Some("60s"),
        "How old the listing of a folder may be before the service is asked again";
    CAPACITY = "capacity", Files, Size, "SIZE", None,
        "Size of the file system as df shows it [default: 1 EiB]";

    PART_SIZE = "part-size", Writing, Size, "SIZE", Some("8MiB"),
        "Size of the pieces in which large files are kept on disk and sent, 100KiB to 1GiB";
    UPLOAD_WORKERS = "upload-workers", Writing, Number, "N", Some("16"), "Most uploads at a time";
    SPILL_LIMIT = "spill-limit", Writing, Size, "SIZE", None,
        "Most disk space for files that are being written or sent; over it writers wait, and parts that were sent \
         leave the disk [default: half of what is free on that disk]";
    CLOSE = "close", Writing, Choice(&["remote", "local"]), "remote|local", Some("remote"),
        "What closing a file waits for: the service, or the local disk, from which it is sent in the background";
    SEND_AFTER = "send-after", Writing, Duration, "TIME", Some("250ms"),
        "How long a file that was closed on the local disk waits before it is sent: renamed meanwhile it is sent once, \
         deleted not at all";
    FSYNC = "fsync", Writing, Choice(&["local", "remote"]), "local|remote", Some("local"),
        "What fsync waits for: the local disk, or the service";
    PUBLISH_AFTER = "publish-after", Writing, Text, "never|TIME", Some("never"),
        "Send files that stay open so long after they began to change, each time as a whole";
    ON_KILL = "on-kill", Writing, Choice(&["keep", "publish"]), "keep|publish", Some("keep"),
        "A file whose writer was killed: keep its bytes for `recover`, or publish it as far as it goes";
    EXCLUSIVE_CREATE = "exclusive-create", Writing, Choice(&["local", "remote"]), "local|remote", Some("local"),
        "Where a file that is created with O_EXCL must be new: as far as this mount knows, or in the service too, \
         so that closing it fails where another client was first";
    RECOVER = "recover", Writing, Choice(&["safe", "publish", "keep"]), "safe|publish|keep", Some("safe"),
        "What a crash left behind: finish what was closed or synced (safe), all of it (publish), or nothing (keep)";
    RECOVER_KEEP = "recover-keep", Writing, Duration, "TIME", Some("30d"),
        "How long files that were kept for `recover` stay; `status` tells a week ahead which will go";

    DOWNLOAD_WORKERS = "download-workers", Reading, Number, "N", Some("16"), "Most downloads at a time";

    MEMORY_LIMIT = "memory-limit", Limits, Size, "SIZE", Some("192MiB"), "Most memory for buffers and caches";
    LIMIT_UPLOAD = "limit-upload", Limits, Rate, "RATE", None,
        "Most bytes of file content sent in any second, such as 10MiB/s";
    LIMIT_DOWNLOAD = "limit-download", Limits, Rate, "RATE", None,
        "Most bytes of file content fetched in any second, such as 10MiB/s";
    LIMIT_REQUESTS = "limit-requests", Limits, Rate, "N/s", None,
        "Most requests made in any second, such as 50/s";
    TRY_TIMEOUT = "try-timeout", Limits, Duration, "TIME", Some("20s"),
        "Give up one try of a request when no byte has moved for so long";
    OUTAGE_TIMEOUT = "outage-timeout", Limits, Duration, "TIME", Some("15m"),
        "How long a call waits for a service that is out, before it fails; what was written is sent later all the same";
    MOUNT_TIMEOUT = "mount-timeout", Limits, Duration, "TIME", Some("60s"),
        "Give up mounting when the service has not answered for so long";
    OFFLINE = "offline", Limits, Choice(&["wait", "mount", "fail"]), "wait|mount|fail", Some("wait"),
        "What mounting does when the service does not answer: wait for it up to --mount-timeout, mount at once and \
         connect later, or fail";

    FOREGROUND = "foreground", Running, Flag, "", None,
        "Stay in the foreground and log to stderr; Ctrl-C unmounts", short 'f';
    SHOW_CONFIG = "show-config", Running, Flag, "", None,
        "Print every option with its value and where that comes from, and mount nothing";
    NO_SUPERVISOR = "no-supervisor", Running, Flag, "", None,
        "Serve from one process, whose crash is the end of the mount; for debugging";
    LOG_FILE = "log-file", Running, Path, "PATH", None,
        "Log to this file [default: stderr with -f, else `log` in the mount's state folder]";
    LOG_FORMAT = "log-format", Running, Choice(&["text", "json"]), "text|json", Some("text"),
        "Lines for people, or one JSON object a line";
    LOG_LEVEL = "log-level", Running, Choice(&["info", "off", "error", "warn", "debug", "trace"]), "LEVEL",
        Some("info"), "How much is logged: off, error, warn, info, debug or trace";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_well_formed() {
        let mut names: Vec<_> = OPTIONS.iter().map(|spec| spec.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), OPTIONS.len());
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
    }

    #[test]
    fn a_choice_has_its_default_first() {
        for spec in OPTIONS {
            if let (Choice(words), Some(default)) = (spec.kind, spec.default) {
                assert_eq!(words.first(), Some(&default), "{}", spec.name);
            }
        }
    }

    #[test]
    fn secrets_have_no_place_on_a_command_line() {
        assert!(ACCESS_KEY_SECRET.is_secret() && SECURITY_TOKEN.is_secret());
        assert!(!ACCESS_KEY_ID.is_secret());
        assert_eq!(PART_SIZE.variable(), "OSSFUSE_PART_SIZE");
    }
}
