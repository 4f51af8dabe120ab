//! Keeps keys fresh: ahead of their end, and as soon as a file changes. One refresh at a time.
//!
//! Keys that were read serve until others were: a place that does not answer takes nothing away before their end.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{CredentialError, Fetched, Source};
use crate::base::time::now;
use crate::oss::{CredentialSource, Credentials};

/// How often a file is looked at.
const FILE_LOOK: Duration = Duration::from_secs(2);
/// How often, and how many times, a directory is looked at again that seems to be halfway through a rotation.
const ROTATION_LOOK: Duration = Duration::from_millis(500);
const ROTATION_LOOKS: u32 = 10;
/// Longest before their end that keys are refreshed (OSS reference, §5.2).
const AHEAD_MAX: Duration = Duration::from_secs(20 * 60);
/// After a refresh that failed.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A place and what it said last.
#[derive(Debug)]
pub struct Keeper {
    source: Source,
    last: Mutex<Fetched>,
    one: tokio::sync::Mutex<()>,
    wake: Notify,
}

impl Keeper {
    /// Reads the place for the first time.
    ///
    /// # Errors
    /// There are no keys.
    pub async fn open(source: Source) -> Result<Arc<Self>, CredentialError> {
        let last = Mutex::new(source.fetch().await?);
        Ok(Arc::new(Self { source, last, one: tokio::sync::Mutex::new(()), wake: Notify::new() }))
    }

    /// The keys to sign with.
    pub fn current(&self) -> Credentials {
        self.last.lock().credentials.clone()
    }

    /// For people: where the keys come from.
    pub fn source(&self) -> String {
        self.source.describe()
    }

    /// Reads the place again now; the keys, if they are others than before.
    ///
    /// # Errors
    /// The place has none now; the ones before serve on.
    pub async fn refresh(&self) -> Result<Option<Credentials>, CredentialError> {
        let _one = self.one.lock().await;
        let fetched = self.fetch_whole().await?;
        let mut last = self.last.lock();
        let is_new = last.credentials != fetched.credentials;
        *last = fetched;
        Ok(is_new.then(|| last.credentials.clone()))
    }

    /// In a directory of rotated files the id is replaced last: a new secret beside the old id is half a rotation, unless
    /// it stays so.
    async fn fetch_whole(&self) -> Result<Fetched, CredentialError> {
        let mut fetched = self.source.fetch().await?;
        let before = self.current();
        for _ in 0..ROTATION_LOOKS {
            let keys = &fetched.credentials;
            let is_half = keys.access_key_id == before.access_key_id && *keys != before;
            if !is_half || !self.source.is_rotated() {
                break;
            }
            tokio::time::sleep(ROTATION_LOOK).await;
            fetched = self.source.fetch().await?;
        }
        Ok(fetched)
    }

    /// Has [`Self::run`] read the place at once.
    pub fn look_again(&self) {
        self.wake.notify_one();
    }

    /// Hands on new keys as they come, for ever.
    pub async fn run(&self, hand_on: impl Fn(Credentials)) {
        if self.source.is_fixed() {
            return;
        }
        let mut stamp = self.stamp();
        let mut pause = PAUSE.0;
        loop {
            let due = self.due(now());
            tokio::select! {
                () = tokio::time::sleep(due.unwrap_or(Duration::MAX)) => {}
                () = self.wake.notified() => {}
                () = changed(self, &mut stamp) => {}
            }
            match self.refresh().await {
                Ok(Some(credentials)) => {
                    log::info!("new credentials from {}", self.source.describe());
                    pause = PAUSE.0;
                    hand_on(credentials);
                }
                // Asked ahead of its time it may well give the same ones again.
                Ok(None) if due.is_none() => pause = PAUSE.0,
                Ok(None) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
                Err(error) => {
                    log::warn!("credentials cannot be refreshed, the old ones serve on: {error}");
                    // What was half written when it was read may be whole without looking any different.
                    stamp = None;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    /// How long until the keys must be refreshed; `None` where they do not end.
    fn due(&self, at: SystemTime) -> Option<Duration> {
        let left = self.last.lock().expires?.duration_since(at).unwrap_or_default();
        Some(left.saturating_sub(AHEAD_MAX.min(left / 5)))
    }

    /// What a change of the file shows in; nothing for other places.
    fn stamp(&self) -> Option<Stamp> {
        match &self.source {
            Source::File(file) => Some(Stamp::of(&file.path)),
            _ => None,
        }
    }
}

/// The service refused the keys in use: the place may have others.
impl CredentialSource for Keeper {
    fn reread(&self) -> Pin<Box<dyn Future<Output = Option<Credentials>> + Send + '_>> {
        Box::pin(async {
            match self.refresh().await {
                Ok(_) => Some(self.current()),
                Err(error) => {
                    log::warn!("credentials cannot be read again: {error}");
                    None
                }
            }
        })
    }
}

/// Waits until the file is another than `stamp` says.
async fn changed(keeper: &Keeper, stamp: &mut Option<Stamp>) {
    loop {
        tokio::time::sleep(FILE_LOOK).await;
        let now = keeper.stamp();
        if now != *stamp {
            *stamp = now;
            return;
        }
    }
}

/// Inode, size and modification time of a file, or of those in a directory that make up the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp(Vec<Option<(u64, u64, Option<SystemTime>)>>);

impl Stamp {
    fn of(path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let names = ["", "AccessKeyId", "AccessKeySecret", "SecurityToken", "Expiration"];
        let of_one = |name: &&str| {
            let path = if name.is_empty() { path.to_owned() } else { path.join(name) };
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.len(), metadata.modified().ok()))
        };
        Self(names.iter().map(of_one).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::KeyFile;
    use super::*;

    fn keys(id: &str) -> Credentials {
        Credentials { access_key_id: id.into(), access_key_secret: "s".into(), security_token: None }
    }

    fn keeper(left: Option<Duration>) -> Keeper {
        let expires = left.map(|left| now() + left);
        Keeper {
            source: Source::Anonymous,
            last: Mutex::new(Fetched { credentials: keys("i"), expires }),
            one: tokio::sync::Mutex::new(()),
            wake: Notify::new(),
        }
    }

    #[test]
    fn keys_are_refreshed_ahead_of_their_end() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let at = now();
        let due = |left| {
            let expires = at + left;
            let keeper = keeper(None);
            keeper.last.lock().expires = Some(expires);
            keeper.due(at).unwrap()
        };
        assert_eq!(due(minutes(600)), minutes(580), "twenty minutes before");
        assert_eq!(due(minutes(10)), minutes(8), "or a fifth of what is left");
        assert_eq!(due(Duration::ZERO), Duration::ZERO);
        assert_eq!(keeper(None).due(at), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_read_again_and_a_broken_one_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let write = |text: &str| {
            let next = dir.path().join("next");
            fs::write(&next, text).unwrap();
            fs::set_permissions(&next, fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(next, &path).unwrap();
        };
        write("one:s");
        let file = KeyFile { path: path.clone(), profile: None, bucket: "b".into() };
        let keeper = Keeper::open(Source::File(file)).await.unwrap();
        assert_eq!(keeper.current(), keys("one"));
        let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let running = keeper.clone();
        tokio::spawn(async move { running.run(|credentials| sender.send(credentials).unwrap()).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        write("broken");
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(seen.try_recv().is_err());
        assert_eq!(keeper.current(), keys("one"));
        write("two:s");
        assert_eq!(seen.recv().await, Some(keys("two")));
        write("three:s");
        keeper.look_again();
        assert_eq!(seen.recv().await, Some(keys("three")));
        assert_eq!(keeper.refresh().await, Ok(None));
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_rotation_is_waited_for_and_a_mended_secret_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("AccessKeySecret", "s");
        write("AccessKeyId", "one");
        let file = KeyFile { path: dir.path().to_owned(), profile: None, bucket: "b".into() };
        let keeper = Keeper::open(Source::File(file)).await.unwrap();
        write("AccessKeySecret", "new");
        let (refreshed, ()) = tokio::join!(keeper.refresh(), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            write("AccessKeyId", "two");
        });
        let new = |id: &str, secret: &str| Credentials { access_key_secret: secret.into(), ..keys(id) };
        assert_eq!(refreshed, Ok(Some(new("two", "new"))));
        write("AccessKeySecret", "mended");
        assert_eq!(keeper.refresh().await, Ok(Some(new("two", "mended"))));
    }
}
