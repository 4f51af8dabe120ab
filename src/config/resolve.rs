//! Raw values to a [`MountConfig`]: what follows from what, and what cannot stand together.
//!
//! Every error names the source of the value that is at fault.

use std::path::Path;
use std::time::Duration;

use super::chain::resolve_credentials;
use super::endpoint::{self, Url};
use super::environment::Environment;
use super::options as o;
use super::place::{Target, socket_path, state_folder};
use super::problem::Problem;
use super::raw::{RawOptions, Source};
use super::{
    Access, CloseMode, ConnectionConfig, ContentType, ExclusiveCreate, FilesConfig, FsyncMode, LogConfig, LogFormat,
    MetadataMode, MountConfig, OfflineMode, OnKill, ReadingConfig, RecoverMode, SymlinkMode, WritingConfig, file,
};
use crate::base::limits::{GIB, MIB, PART_BYTES_MIN, PIECE_BYTES_MAX, TIB};
use crate::oss::{Addressing, Endpoint, Limits, SignatureVersion};

/// Least and most of `--memory-limit` in bytes.
const MEMORY_BYTES_MIN: u64 = 32 * MIB;
const MEMORY_BYTES_MAX: u64 = 16 * TIB;
/// Most workers of a kind.
const WORKERS_MAX: u32 = 256;
/// What `df` shows unless told otherwise: 1 EiB.
const CAPACITY_BYTES_DEFAULT: u64 = GIB * GIB;

/// The values of all sources over each other, and what was odd about them but is no error.
#[derive(Debug, Default)]
pub struct Layers {
    pub raw: RawOptions,
    pub warnings: Vec<String>,
}

impl Layers {
    /// Lays flags and `-o` over the environment, and that over the config file they name.
    ///
    /// # Errors
    /// See [`Problem`]: a config file that is missing, refused or wrong.
    pub fn gather(command_line: RawOptions, environment: &Environment) -> Result<Self, Problem> {
        let (mut raw, warnings) = environment.options();
        raw.merge(command_line);
        let from_file = file::load(&raw, environment)?;
        raw.merge(from_file);
        Ok(Self { raw, warnings })
    }
}

/// What `ossfuse mount` needs. `mountpoint` is absolute and free of symlinks.
///
/// # Errors
/// The first value that cannot be read, is out of bounds, missing, or at odds with another.
pub fn resolve_mount(
    raw: &RawOptions,
    environment: &Environment,
    target: &Target,
    mountpoint: &Path,
) -> Result<MountConfig, Problem> {
    let state_folder = state_folder(&resolve_state_parent(raw, environment)?, &target.bucket, &target.prefix);
    let foreground = raw.flag(&o::FOREGROUND)?;
    let default_log = (!foreground).then(|| state_folder.join("log"));
    Ok(MountConfig {
        files: resolve_files(raw, environment)?,
        writing: resolve_writing(raw)?,
        reading: ReadingConfig { download_workers: raw.count(&o::DOWNLOAD_WORKERS, 1, WORKERS_MAX)? },
        memory_limit: raw.size_between(&o::MEMORY_LIMIT, MEMORY_BYTES_MIN, MEMORY_BYTES_MAX)?,
        mount_timeout: raw.timeout(&o::MOUNT_TIMEOUT)?,
        offline: match raw.choice(&o::OFFLINE)? {
            Some("mount") => OfflineMode::Mount,
            Some("fail") => OfflineMode::Fail,
            _ => OfflineMode::Wait,
        },
        log: LogConfig {
            level_file: level_file(raw, environment)?,
            file: raw.path(&o::LOG_FILE, &environment.cwd)?.or(default_log),
            format: if raw.choice(&o::LOG_FORMAT)? == Some("json") { LogFormat::Json } else { LogFormat::Text },
            level: raw.choice(&o::LOG_LEVEL)?.and_then(|word| word.parse().ok()).unwrap_or(log::LevelFilter::Info),
        },
        // After all that can be wrong by itself: what is missing is told last.
        connection: resolve_connection(raw, environment, target)?,
        spec: target.spec.clone(),
        socket: socket_path(&environment.runtime_dir()?, mountpoint),
        mountpoint: mountpoint.to_owned(),
        state_folder,
        foreground,
        supervised: !raw.flag(&o::NO_SUPERVISOR)?,
    })
}

/// Where the log level may come from while a mount runs.
fn level_file(
    raw: &RawOptions,
    environment: &Environment,
) -> Result<Option<(std::path::PathBuf, Option<String>)>, Problem> {
    let fixed = raw.given(&o::LOG_LEVEL).is_some_and(|value| !matches!(value.source, Source::File { .. }));
    let place = if fixed { None } else { file::place(raw, environment)? };
    Ok(place.map(|path| (path, raw.text(&o::PROFILE).map(str::to_owned))))
}

/// Whether every value can be read and stands with the others, whatever is missing.
///
/// # Errors
/// The first that does not.
pub(super) fn check_values(raw: &RawOptions, environment: &Environment) -> Result<(), Problem> {
    resolve_files(raw, environment)?;
    resolve_writing(raw)?;
    for spec in o::OPTIONS {
        match spec.kind {
            o::Kind::Flag => drop(raw.flag(spec)?),
            o::Kind::Choice(_) => drop(raw.choice(spec)?),
            o::Kind::Size => drop(raw.size(spec)?),
            o::Kind::Rate => drop(raw.rate(spec)?),
            o::Kind::Number => drop(raw.number(spec)?),
            o::Kind::Mode => drop(raw.mode(spec)?),
            o::Kind::Path => drop(raw.path(spec, &environment.cwd)?),
            o::Kind::Duration if raw.given(spec).is_some() => drop(raw.duration(spec)?),
            o::Kind::Duration | o::Kind::Text => {}
        }
    }
    raw.count(&o::DOWNLOAD_WORKERS, 1, WORKERS_MAX)?;
    raw.frequency(&o::LIMIT_REQUESTS)?;
    raw.size_between(&o::MEMORY_LIMIT, MEMORY_BYTES_MIN, MEMORY_BYTES_MAX)?;
    if raw.given(&o::ENDPOINT).is_some() || raw.given(&o::REGION).is_some() {
        let cname = raw.flag(&o::CNAME)?;
        let (endpoint, region) = resolve_endpoint(raw, cname)?;
        resolve_addressing(raw, cname, &endpoint)?;
        resolve_signature(raw, region.as_deref())?;
    }
    Ok(())
}

/// The folder that holds a folder for each bucket and prefix.
///
/// # Errors
/// An empty `--state-dir`, or a user without a home.
pub fn resolve_state_parent(raw: &RawOptions, environment: &Environment) -> Result<std::path::PathBuf, Problem> {
    match raw.path(&o::STATE_DIR, &environment.cwd)? {
        Some(parent) => Ok(parent),
        None => environment.state_parent(),
    }
}

fn resolve_files(raw: &RawOptions, environment: &Environment) -> Result<FilesConfig, Problem> {
    let umask = raw.mode(&o::UMASK)?.unwrap_or_default();
    let access = match (raw.flag(&o::ALLOW_OTHER)?, raw.flag(&o::ALLOW_ROOT)?) {
        (true, true) => {
            let what = format!("{} and {}", raw.describe(&o::ALLOW_OTHER), raw.describe(&o::ALLOW_ROOT));
            return Err(Problem::new(what, "everybody includes root", "give one of them").usage());
        }
        (true, false) => Access::Everyone,
        (false, true) => Access::OwnerAndRoot,
        (false, false) => Access::Owner,
    };
    Ok(FilesConfig {
        read_only: raw.flag(&o::READ_ONLY)?,
        access,
        kernel_flags: raw.text(&o::KERNEL_FLAGS).unwrap_or_default().split(',').map(str::to_owned).collect(),
        nonempty: raw.flag(&o::NONEMPTY)?,
        uid: raw.number(&o::UID)?.unwrap_or(environment.uid),
        gid: raw.number(&o::GID)?.unwrap_or(environment.gid),
        dir_mode: raw.mode(&o::DIR_MODE)?.unwrap_or(0o777 & !umask),
        file_mode: raw.mode(&o::FILE_MODE)?.unwrap_or(0o666 & !umask),
        metadata: if raw.choice(&o::METADATA)? == Some("plain") { MetadataMode::Plain } else { MetadataMode::Posix },
        symlinks: match raw.choice(&o::SYMLINKS)? {
            Some("meta") => SymlinkMode::Meta,
            Some("native") => SymlinkMode::Native,
            _ => SymlinkMode::Body,
        },
        attr_ttl: raw.duration(&o::ATTR_TTL)?,
        list_ttl: raw.duration(&o::LIST_TTL)?,
        capacity: raw.size(&o::CAPACITY)?.unwrap_or(CAPACITY_BYTES_DEFAULT),
        content_type: resolve_content_type(raw)?,
        storage_class: raw.choice(&o::STORAGE_CLASS)?,
        encryption: raw.choice(&o::SSE)?,
    })
}

fn resolve_content_type(raw: &RawOptions) -> Result<ContentType, Problem> {
    let text = raw.text(&o::CONTENT_TYPE).unwrap_or("auto").trim();
    if text == "auto" {
        return Ok(ContentType::Auto);
    }
    let printable = text.bytes().all(|b| (b' '..=b'~').contains(&b));
    let halves = text.split_once('/').is_some_and(|(kind, form)| !kind.is_empty() && !form.is_empty());
    if printable && halves {
        return Ok(ContentType::Fixed(text.to_owned()));
    }
    Err(raw.bad(&o::CONTENT_TYPE, format!("`{text}` is no content type; write it like text/plain")))
}

fn resolve_writing(raw: &RawOptions) -> Result<WritingConfig, Problem> {
    Ok(WritingConfig {
        part_size: raw.size_between(&o::PART_SIZE, PART_BYTES_MIN, PIECE_BYTES_MAX)?,
        upload_workers: raw.count(&o::UPLOAD_WORKERS, 1, WORKERS_MAX)?,
        spill_limit: raw.size(&o::SPILL_LIMIT)?,
        close: if raw.choice(&o::CLOSE)? == Some("local") { CloseMode::Local } else { CloseMode::Remote },
        send_after: raw.duration(&o::SEND_AFTER)?,
        publish_after: resolve_publish_after(raw)?,
        exclusive_create: match raw.choice(&o::EXCLUSIVE_CREATE)? {
            Some("remote") => ExclusiveCreate::Remote,
            _ => ExclusiveCreate::Local,
        },
        fsync: if raw.choice(&o::FSYNC)? == Some("remote") { FsyncMode::Remote } else { FsyncMode::Local },
        on_kill: if raw.choice(&o::ON_KILL)? == Some("publish") { OnKill::Publish } else { OnKill::Keep },
        recover: match raw.choice(&o::RECOVER)? {
            Some("publish") => RecoverMode::Publish,
            Some("keep") => RecoverMode::Keep,
            _ => RecoverMode::Safe,
        },
        recover_keep: raw.timeout(&o::RECOVER_KEEP)?,
    })
}

fn resolve_publish_after(raw: &RawOptions) -> Result<Option<Duration>, Problem> {
    match raw.text(&o::PUBLISH_AFTER).map(str::trim) {
        None | Some("never") => Ok(None),
        Some(_) => raw.timeout(&o::PUBLISH_AFTER).map(Some),
    }
}

/// What every command needs that talks to the service.
///
/// # Errors
/// As [`resolve_mount`].
pub fn resolve_connection(
    raw: &RawOptions,
    environment: &Environment,
    target: &Target,
) -> Result<ConnectionConfig, Problem> {
    let cname = raw.flag(&o::CNAME)?;
    let (endpoint, region) = resolve_endpoint(raw, cname)?;
    let allow_http = raw.flag(&o::ALLOW_HTTP)?;
    if !endpoint.https && !allow_http && !endpoint::is_loopback(&endpoint) {
        let why = format!("{} is not encrypted", Url(&endpoint));
        return Err(Problem::new(raw.describe(&o::ENDPOINT), why, "use https://, or accept it with --allow-http"));
    }
    let try_timeout: Duration = raw.timeout(&o::TRY_TIMEOUT)?;
    Ok(ConnectionConfig {
        addressing: resolve_addressing(raw, cname, &endpoint)?,
        signature: resolve_signature(raw, region.as_deref())?,
        endpoint,
        region,
        bucket: target.bucket.clone(),
        prefix: target.prefix.clone(),
        credentials: resolve_credentials(raw, environment, &target.bucket)?,
        ca_file: raw.path(&o::CA_FILE, &environment.cwd)?,
        try_timeout,
        outage_timeout: raw.timeout(&o::OUTAGE_TIMEOUT)?,
        limits: Limits {
            upload: raw.rate(&o::LIMIT_UPLOAD)?,
            download: raw.rate(&o::LIMIT_DOWNLOAD)?,
            requests: raw.frequency(&o::LIMIT_REQUESTS)?,
        },
        allow_http,
    })
}

/// Endpoint and region, either from the other.
pub(super) fn resolve_endpoint(raw: &RawOptions, cname: bool) -> Result<(Endpoint, Option<String>), Problem> {
    let internal = raw.flag(&o::INTERNAL)?;
    let region = match raw.text(&o::REGION) {
        None => None,
        Some(text) => Some(
            endpoint::general_region(text.trim())
                .ok_or_else(|| raw.bad(&o::REGION, format!("`{text}` is no region; write it like cn-hangzhou")))?,
        ),
    };
    let given = match raw.text(&o::ENDPOINT) {
        None => None,
        Some(text) => Some(endpoint::parse(text.trim()).map_err(|why| raw.bad(&o::ENDPOINT, why))?),
    };
    match (given, region) {
        (None, None) => {
            let mend = "give --region ID (such as cn-hangzhou) or --endpoint URL";
            Err(Problem::new("the service", "neither its region nor its endpoint is known", mend))
        }
        (None, Some(region)) => Ok((endpoint::of_region(region, internal), Some(region.to_owned()))),
        (Some(given), region) => reconcile(raw, given, region, internal, cname),
    }
}

/// Holds a given endpoint against what else was said of the place.
fn reconcile(
    raw: &RawOptions,
    given: Endpoint,
    region: Option<&str>,
    internal: bool,
    cname: bool,
) -> Result<(Endpoint, Option<String>), Problem> {
    if let (Some(bucket), false) = (endpoint::bucket_in(&given), cname) {
        let why = format!("it has the bucket `{bucket}` in it");
        return Err(Problem::new(raw.describe(&o::ENDPOINT), why, "leave the bucket out, or give --cname"));
    }
    let told = endpoint::region_of(&given);
    if let (Some(told), Some(region)) = (told, region)
        && told != region
    {
        let what = format!("{} and {}", raw.describe(&o::ENDPOINT), raw.describe(&o::REGION));
        let why = format!("the endpoint is in {told}, not in {region}");
        return Err(Problem::new(what, why, "give one of them, and the other follows"));
    }
    let region = region.or(told).map(str::to_owned);
    match (internal, told) {
        (false, _) => Ok((given, region)),
        (true, Some(told)) => {
            Ok((Endpoint { https: given.https, port: given.port, ..endpoint::of_region(told, true) }, region))
        }
        (true, None) => {
            let why = format!("no intranet endpoint is known for {}", Url(&given));
            let mend = "give --region in place of the endpoint, or the intranet endpoint itself";
            Err(Problem::new(raw.describe(&o::INTERNAL), why, mend))
        }
    }
}

fn resolve_addressing(raw: &RawOptions, cname: bool, endpoint: &Endpoint) -> Result<Addressing, Problem> {
    let path_style = match raw.choice(&o::PATH_STYLE)? {
        Some("on") if cname => {
            let what = format!("{} and {}", raw.describe(&o::PATH_STYLE), raw.describe(&o::CNAME));
            return Err(Problem::new(
                what,
                "a domain that is bound to the bucket has no bucket in its paths",
                "give one of them",
            ));
        }
        Some("on") => true,
        Some("off") => false,
        _ => endpoint::wants_path_style(endpoint),
    };
    Ok(match (cname, path_style) {
        (true, _) => Addressing::Cname,
        (false, true) => Addressing::Path,
        (false, false) => Addressing::VirtualHost,
    })
}

fn resolve_signature(raw: &RawOptions, region: Option<&str>) -> Result<SignatureVersion, Problem> {
    match (raw.choice(&o::SIGNATURE)?, region) {
        (Some("v1"), _) => Ok(SignatureVersion::V1),
        (_, Some(_)) => Ok(SignatureVersion::V4),
        (_, None) if raw.given(&o::SIGNATURE).is_none() => Ok(SignatureVersion::V1),
        (_, None) => {
            let why = "v4 signs with the region, and the endpoint does not tell it";
            Err(Problem::new(raw.describe(&o::SIGNATURE), why, "give --region ID"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::environment::for_test;
    use crate::config::parse_mount_options;
    use crate::credentials::Source as CredentialSource;

    const KEYS: [(&str, &str); 2] = [("OSS_ACCESS_KEY_ID", "id"), ("OSS_ACCESS_KEY_SECRET", "hush")];

    fn mount_in(environment: &Environment, options: &str) -> Result<MountConfig, String> {
        let layers = Layers::gather(parse_mount_options(options).unwrap(), environment).map_err(|e| e.to_string())?;
        let target = "photos:2024".parse().unwrap();
        resolve_mount(&layers.raw, environment, &target, Path::new("/mnt")).map_err(|e| e.to_string())
    }

    fn mount(options: &str) -> Result<MountConfig, String> {
        mount_in(&for_test(&[&KEYS[..], &[("HOME", "/home/u")]].concat()), options)
    }

    fn connection(options: &str) -> (String, Option<String>, Addressing, SignatureVersion) {
        let config = mount(options).unwrap().connection;
        (Url(&config.endpoint).to_string(), config.region, config.addressing, config.signature)
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = mount("region=cn-hangzhou").unwrap();
        assert_eq!(config.spec, "photos:2024");
        assert_eq!(config.connection.prefix.as_str(), "2024/");
        assert_eq!(config.state_folder, Path::new("/home/u/.local/state/ossfuse/photos@2024"));
        assert_eq!(config.socket.parent(), Some(Path::new("/home/u/.local/state/ossfuse/run")));
        let files = &config.files;
        assert_eq!((files.uid, files.gid, files.file_mode, files.dir_mode), (1000, 100, 0o644, 0o755));
        assert_eq!((files.attr_ttl, files.list_ttl), (Duration::from_secs(60), Duration::from_secs(60)));
        assert_eq!((files.capacity, files.access), (1 << 60, Access::Owner));
        assert_eq!((files.storage_class, files.encryption), (None, None));
        let writing = &config.writing;
        assert_eq!((writing.part_size, writing.upload_workers), (8 * MIB, 16));
        assert_eq!(
            (writing.fsync, writing.on_kill, writing.recover),
            (FsyncMode::Local, OnKill::Keep, RecoverMode::Safe)
        );
        assert_eq!(
            (writing.close, writing.publish_after, writing.exclusive_create),
            (CloseMode::Remote, None, ExclusiveCreate::Local)
        );
        assert_eq!(writing.send_after, Duration::from_millis(250));
        assert_eq!((config.memory_limit, config.reading.download_workers), (192 * MIB, 16));
        assert_eq!(config.connection.try_timeout, Duration::from_secs(20));
        assert_eq!(config.mount_timeout, Duration::from_secs(60));
        assert_eq!(config.offline, OfflineMode::Wait);
        assert_eq!(config.connection.outage_timeout, Duration::from_secs(15 * 60));
        assert_eq!(config.connection.limits, Limits::default());
        assert_eq!(config.log.file.as_deref(), Some(&*config.state_folder.join("log")));
        assert_eq!((config.log.format, config.log.level), (LogFormat::Text, log::LevelFilter::Info));
        assert_eq!(mount("region=cn-hangzhou,foreground").unwrap().log.file, None);
    }

    #[test]
    fn limits_are_rates() {
        let limited = "region=cn-hangzhou,limit-upload=10MiB/s,limit_download=1M/s,limit-requests=50/s,offline=mount";
        let config = mount(limited).unwrap();
        let limits = Limits { upload: Some(10 * MIB), download: Some(MIB), requests: Some(50) };
        assert_eq!((config.connection.limits, config.offline), (limits, OfflineMode::Mount));
        for wrong in ["limit-upload=10MiB", "limit-download=0/s", "limit-requests=0/s", "limit-requests=5"] {
            assert!(mount(&format!("region=cn-hangzhou,{wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn region_and_endpoint_follow_from_each_other() {
        use Addressing::*;
        use SignatureVersion::*;
        let hangzhou = Some("cn-hangzhou".to_owned());
        let public = "https://oss-cn-hangzhou.aliyuncs.com".to_owned();
        let internal = "https://oss-cn-hangzhou-internal.aliyuncs.com".to_owned();
        for (options, wanted) in [
            ("region=cn-hangzhou", (public.clone(), hangzhou.clone(), VirtualHost, V4)),
            ("region=oss-cn-hangzhou", (public.clone(), hangzhou.clone(), VirtualHost, V4)),
            ("endpoint=oss-cn-hangzhou.aliyuncs.com", (public.clone(), hangzhou.clone(), VirtualHost, V4)),
            ("region=cn-hangzhou,internal", (internal.clone(), hangzhou.clone(), VirtualHost, V4)),
            ("endpoint=oss-cn-hangzhou.aliyuncs.com,internal", (internal.clone(), hangzhou.clone(), VirtualHost, V4)),
            ("endpoint=oss-cn-hangzhou-internal.aliyuncs.com,internal", (internal, hangzhou.clone(), VirtualHost, V4)),
            ("region=cn-hangzhou,signature=v1", (public, hangzhou.clone(), VirtualHost, V1)),
            ("endpoint=http://127.0.0.1:9000", ("http://127.0.0.1:9000".into(), None, Path, V1)),
            (
                "endpoint=http://localhost:9000,region=cn-hangzhou",
                ("http://localhost:9000".into(), hangzhou.clone(), Path, V4),
            ),
            ("endpoint=http://[::1]:9000,path-style=off", ("http://[::1]:9000".into(), None, VirtualHost, V1)),
            ("endpoint=f.example.com,cname", ("https://f.example.com".into(), None, Cname, V1)),
            ("endpoint=f.example.com,path_style=ON", ("https://f.example.com".into(), None, Path, V1)),
            ("endpoint=http://10.0.0.1,allow-http", ("http://10.0.0.1".into(), None, Path, V1)),
            (
                "endpoint=oss-accelerate.aliyuncs.com,region=cn-hangzhou",
                ("https://oss-accelerate.aliyuncs.com".into(), hangzhou, VirtualHost, V4),
            ),
        ] {
            assert_eq!(connection(options), wanted, "{options}");
        }
    }

    #[test]
    fn what_cannot_stand_says_why_and_how_to_mend_it() {
        for (options, wanted) in [
            (
                "",
                "the service: neither its region nor its endpoint is known; give --region ID (such as cn-hangzhou) or --endpoint URL",
            ),
            (
                "endpoint=http://10.0.0.1",
                "-o endpoint: http://10.0.0.1 is not encrypted; use https://, or accept it with --allow-http",
            ),
            (
                "endpoint=127.0.0.1,signature=v4",
                "-o signature: v4 signs with the region, and the endpoint does not tell it; give --region ID",
            ),
            (
                "endpoint=oss-cn-hangzhou.aliyuncs.com,region=cn-beijing",
                "-o endpoint and -o region: the endpoint is in cn-hangzhou, not in cn-beijing; give one of them, and the other follows",
            ),
            (
                "endpoint=photos.oss-cn-hangzhou.aliyuncs.com",
                "-o endpoint: it has the bucket `photos` in it; leave the bucket out, or give --cname",
            ),
            (
                "endpoint=localhost,internal",
                "-o internal: no intranet endpoint is known for https://localhost; give --region in place of the endpoint, or the intranet endpoint itself",
            ),
            ("region=Hang Zhou", "-o region: `Hang Zhou` is no region; write it like cn-hangzhou"),
            (
                "region=cn-hangzhou,cname,path-style=on",
                "-o path-style and -o cname: a domain that is bound to the bucket has no bucket in its paths; give one of them",
            ),
            ("allow-other,allow-root", "-o allow-other and -o allow-root: everybody includes root; give one of them"),
            ("part-size=99KiB", "-o part-size: 99 KiB is out of bounds; give 100 KiB to 1 GiB"),
            ("upload-workers=0", "-o upload-workers: 0 is out of bounds; give 1 to 256"),
            ("content-type=text", "-o content-type: `text` is no content type; write it like text/plain"),
            (
                "storage-class=Glacier",
                "-o storage-class: `Glacier` is unknown; give one of Standard, IA, Archive, ColdArchive, DeepColdArchive",
            ),
            ("recover=save", "-o recover: `save` is unknown; did you mean safe?"),
        ] {
            assert_eq!(mount(options).unwrap_err(), wanted, "{options}");
        }
    }

    #[test]
    fn the_umask_shapes_modes_that_are_not_given() {
        let modes = |options: &str| {
            let files = mount(&format!("region=cn-hangzhou,{options}")).unwrap().files;
            (files.file_mode, files.dir_mode)
        };
        assert_eq!(modes("umask=077"), (0o600, 0o700));
        assert_eq!(modes("umask=0"), (0o666, 0o777));
        assert_eq!(modes("umask=077,dir-mode=0750"), (0o600, 0o750));
        assert_eq!(modes("file-mode=0640"), (0o640, 0o755));
    }

    #[test]
    fn flags_go_before_mount_options_before_environment_before_file() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("c.toml");
        std::fs::write(&config, "region = 'from-file'\nupload-workers = 1\npart-size = '1MiB'\nlog-level = 'warn'")
            .unwrap();
        let environment = for_test(&[
            ("OSSFUSE_CONFIG", config.to_str().unwrap()),
            ("OSSFUSE_PART_SIZE", "2MiB"),
            ("OSSFUSE_UPLOAD_WORKERS", "2"),
            ("OSS_REGION", "from-env"),
        ]);
        let mut line = parse_mount_options("part-size=3MiB,upload-workers=3").unwrap();
        line.set(&o::PART_SIZE, "4MiB", Source::Flag);
        let raw = Layers::gather(line, &environment).unwrap().raw;
        let texts =
            [&o::PART_SIZE, &o::UPLOAD_WORKERS, &o::REGION, &o::LOG_LEVEL, &o::FSYNC].map(|spec| raw.text(spec));
        assert_eq!(texts, [Some("4MiB"), Some("3"), Some("from-env"), Some("warn"), Some("local")]);
    }

    #[test]
    fn secrets_show_in_no_output() {
        let config = mount("region=cn-hangzhou").unwrap();
        let CredentialSource::Given(keys) = &config.connection.credentials else { panic!() };
        assert_eq!(keys.access_key_secret, "hush");
        assert!(!format!("{config:?}").contains("hush"));
        let odd = for_test(&[KEYS[0], ("OSS_ACCESS_KEY_SECRET", "hush\u{7}"), ("HOME", "/h")]);
        assert!(!mount_in(&odd, "region=cn-hangzhou").unwrap_err().contains("hush"));
    }
}
