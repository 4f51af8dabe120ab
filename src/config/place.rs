//! What is mounted (`BUCKET[:PREFIX]`) and the folders that follow from it on this machine.
//!
//! The state folder of a bucket and prefix is a pure function of both: no two of them share one, and no prefix
//! can name a folder outside the parent.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::problem::Problem;
use crate::base::Prefix;

/// Longest escaped prefix that stands in a folder's name whole; a name has at most 255 bytes, a bucket 63.
const ESCAPED_BYTES_MAX: usize = 150;

/// A bucket, and what of it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As it was typed; the mount's source in mountinfo.
    pub spec: String,
    pub bucket: String,
    pub prefix: Prefix,
}

impl FromStr for Target {
    type Err = Problem;

    /// Reads `BUCKET`, `BUCKET:PREFIX` or `BUCKET:/PREFIX`.
    fn from_str(spec: &str) -> Result<Self, Problem> {
        if spec.contains("://") {
            let mend = "write BUCKET or BUCKET:PREFIX, and the address with --endpoint";
            return Err(Problem::new(spec, "a URL is no bucket", mend).usage());
        }
        let (bucket, prefix) = spec.split_once(':').unwrap_or((spec, ""));
        if spec.is_empty() {
            return Err(Problem::new("BUCKET", "it is empty", "write BUCKET or BUCKET:PREFIX").usage());
        }
        if !is_bucket(bucket) {
            let why = "a bucket's name has 3 to 63 of a-z, 0-9 and -, and no - at its ends";
            return Err(Problem::new(spec, why, "write BUCKET or BUCKET:PREFIX").usage());
        }
        let prefix = Prefix::parse(prefix)
            .map_err(|error| Problem::new(spec, format!("the prefix cannot be mounted: {error}"), "").usage())?;
        Ok(Self { spec: spec.to_owned(), bucket: bucket.to_owned(), prefix })
    }
}

/// The service's rule for names (OSS reference, §11).
pub fn is_bucket(name: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (3..=63).contains(&name.len())
        && name.bytes().all(|b| alphanumeric(b) || b == b'-')
        && name.bytes().next().is_some_and(alphanumeric)
        && name.bytes().last().is_some_and(alphanumeric)
}

/// The folder under `parent` that holds the state of a bucket and prefix.
///
/// `BUCKET`, or `BUCKET@` and the prefix without its last slash, every byte but letters, digits, `.`, `_`, `-`
/// written `%XX`. Of a long prefix only the beginning stands there, then `%~` and a hash of all of it; no short
/// one can contain that.
pub fn state_folder(parent: &Path, bucket: &str, prefix: &Prefix) -> PathBuf {
    let prefix = prefix.as_str().trim_end_matches('/');
    if prefix.is_empty() {
        return parent.join(bucket);
    }
    let mut escaped = escape(prefix);
    if escaped.len() > ESCAPED_BYTES_MAX {
        escaped.truncate(ESCAPED_BYTES_MAX);
        escaped.push_str("%~");
        escaped.push_str(&hash(prefix.as_bytes()));
    }
    parent.join(format!("{bucket}@{escaped}"))
}

fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The first 128 bits of SHA-256, in hex.
fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The socket of the mount at `mountpoint`, which is absolute and free of symlinks (see [`absolute_mountpoint`]).
pub fn socket_path(runtime_dir: &Path, mountpoint: &Path) -> PathBuf {
    runtime_dir.join(format!("{}.sock", hash(mountpoint.as_os_str().as_encoded_bytes())))
}

/// The absolute path of a mount point, without symlinks, as mountinfo shows it.
///
/// Asks nothing of a file system that may be mounted there: it may be dead or hang.
///
/// # Errors
/// Where the folder that it lies in cannot be reached.
pub fn absolute_mountpoint(path: &Path, cwd: &Path) -> io::Result<PathBuf> {
    // By components: a slash at the end would follow a link.
    let path: PathBuf = cwd.join(path).components().collect();
    // readlink on a mount point is answered by the kernel alone.
    let is_link = std::fs::read_link(&path).is_ok();
    match (path.file_name(), path.parent()) {
        (Some(name), Some(parent)) if !is_link => Ok(std::fs::canonicalize(parent)?.join(name)),
        _ => std::fs::canonicalize(&path),
    }
}

/// Makes `path` a folder that its owner alone can enter, with the folders above it; an existing one stays as it is.
///
/// # Errors
/// The parent cannot be made or written, or something else has the name.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        // The umask may have taken bits; nothing may be added by it.
        Ok(()) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;

    fn folder(bucket: &str, prefix: &str) -> PathBuf {
        state_folder(Path::new("/s"), bucket, &Prefix::parse(prefix).unwrap())
    }

    #[test]
    fn a_target_is_a_bucket_and_perhaps_a_prefix() {
        for (spec, bucket, prefix) in [
            ("photos", "photos", ""),
            ("photos:", "photos", ""),
            ("photos:2024", "photos", "2024/"),
            ("photos:/2024/05/", "photos", "2024/05/"),
            ("photos:a:b", "photos", "a:b/"),
        ] {
            let target: Target = spec.parse().unwrap();
            assert_eq!((target.spec.as_str(), target.bucket.as_str(), target.prefix.as_str()), (spec, bucket, prefix));
        }
        for spec in ["", "ab", "Photos", "a.b.c", "-ab", "ab-", "../x", "oss://photos", "photos:a//b", "photos:../x"] {
            let problem = spec.parse::<Target>().unwrap_err();
            assert!(problem.usage, "{spec}");
        }
    }

    #[test]
    fn folders_are_named_after_bucket_and_prefix() {
        assert_eq!(folder("photos", ""), Path::new("/s/photos"));
        assert_eq!(folder("photos", "2024/may day"), Path::new("/s/photos@2024%2Fmay%20day"));
        let long = folder("photos", &"x".repeat(240));
        assert!(long.file_name().unwrap().len() <= 255);
        assert_ne!(long, folder("photos", &"x".repeat(241)));
    }

    #[test]
    fn prefixes_that_look_alike_have_folders_of_their_own() {
        let prefixes = ["a/b", "a%2Fb", "a_b", "a b", "a", "A", "a@b", "%", "%25", "a.b", "é", "%C3%A9"];
        let folders: HashSet<_> = prefixes.iter().map(|prefix| folder("photos", prefix)).collect();
        assert_eq!(folders.len(), prefixes.len());
    }

    proptest! {
        #[test]
        fn no_two_places_share_a_folder_and_none_lies_outside(
            one in ("[a-z]{3}", "([^/\0]{1,120}/){0,3}"),
            two in ("[a-z]{3}", "([^/\0]{1,120}/){0,3}"),
        ) {
            let place = |(bucket, prefix): &(String, String)| Some((bucket.clone(), Prefix::parse(prefix).ok()?));
            let (Some(one), Some(two)) = (place(&one), place(&two)) else { return Ok(()) };
            let parent = Path::new("/s");
            let folders = [&one, &two].map(|(bucket, prefix)| state_folder(parent, bucket, prefix));
            prop_assert_eq!(one == two, folders[0] == folders[1]);
            for folder in folders {
                prop_assert_eq!(folder.parent(), Some(parent));
                let name = folder.file_name().unwrap().to_str().unwrap();
                prop_assert!(name.len() <= 255 && !name.starts_with('.'));
            }
        }
    }

    #[test]
    fn sockets_are_told_apart_by_the_mount_point() {
        let run = Path::new("/run/ossfuse");
        assert_eq!(socket_path(run, Path::new("/mnt")), socket_path(run, Path::new("/mnt")));
        assert_ne!(socket_path(run, Path::new("/mnt")), socket_path(run, Path::new("/mnt2")));
    }

    #[test]
    fn a_mount_point_has_one_name() {
        let dir = tempfile::tempdir().unwrap();
        let dir = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir(dir.join("real")).unwrap();
        std::os::unix::fs::symlink(dir.join("real"), dir.join("link")).unwrap();
        std::os::unix::fs::symlink(&dir, dir.join("up")).unwrap();
        for path in ["real", "real/", "./real", "link", "link/", "up/real", "real/../real", "up/up/link"] {
            assert_eq!(absolute_mountpoint(Path::new(path), &dir).unwrap(), dir.join("real"), "{path}");
        }
        assert_eq!(absolute_mountpoint(Path::new("real/.."), &dir).unwrap(), dir);
        assert_eq!(absolute_mountpoint(Path::new("/"), &dir).unwrap(), Path::new("/"));
        assert!(absolute_mountpoint(Path::new("none/x"), &dir).is_err());
    }

    #[test]
    fn private_folders_are_private_and_existing_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        create_private_dir(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        create_private_dir(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o755);
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(create_private_dir(&dir.path().join("file")).is_err());
    }
}
