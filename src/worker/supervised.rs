//! The worker's end of the line to its supervisor.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::refusal::{self, Error};
use crate::base::SessionId;
use crate::base::time::{micros, now};
use crate::config::{Access, MountConfig};
use crate::fuse::{Greeting, MountPlan, Watch};
use crate::supervise::{
    Descriptors, Estate, InWork, Link, Order, Report, WORKER_VARIABLE, read_memory_file, start_supervisor,
};

/// Has a worker end with its supervisor instead of going on and starting another; for tests that must leave nothing
/// behind, whatever happens to them.
const TIED_VARIABLE: &str = "_OSSFUSE_TIED";

/// What a worker has from its supervisor.
#[derive(Debug, Clone)]
pub struct Supervised(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    link: Mutex<Arc<Link>>,
    supervisor: AtomicU32,
    epitaph: Option<String>,
    suspects: Vec<u64>,
    careful: bool,
    /// Also the kernel's, once there is a mount.
    estate: Mutex<(Estate, Descriptors)>,
}

/// Listens to the supervisor, if that is what this process was started for; with what the mount was told.
pub fn accept_if_asked() -> Option<(Supervised, Vec<u8>)> {
    let fd: RawFd = std::env::var_os(WORKER_VARIABLE)?.to_str()?.parse().ok()?;
    // SAFETY: no other thread runs yet. Programs that are started here are no workers.
    unsafe { std::env::remove_var(WORKER_VARIABLE) };
    // SAFETY: F_SETFD on any number at worst fails; the supervisor has made the descriptor for us alone.
    let link = unsafe {
        if libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) != 0 {
            return None;
        }
        Link::from_fd(OwnedFd::from_raw_fd(fd))
    };
    // It was started by way of /proc/self/exe, which is nothing to be called in `ps`.
    // SAFETY: a terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"ossfuse".as_ptr()) };
    match welcome(link) {
        Ok(welcomed) => Some(welcomed),
        Err(error) => {
            log::error!("the supervisor makes no sense: {error}");
            None
        }
    }
}

fn welcome(link: Link) -> io::Result<(Supervised, Vec<u8>)> {
    let (order, descriptors) = link.receive::<Order>()?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let Order::Welcome { estate, supervisor, epitaph, suspects, careful } = order else {
        return Err(io::Error::other("no welcome"));
    };
    let descriptors = Descriptors::of(descriptors)?;
    let settings = read_memory_file(&descriptors.settings)?;
    let estate = Mutex::new((*estate, descriptors));
    let (link, supervisor) = (Mutex::new(Arc::new(link)), AtomicU32::new(supervisor));
    Ok((Supervised(Arc::new(Inner { link, supervisor, epitaph, suspects, careful, estate })), settings))
}

impl Supervised {
    /// The process that holds the mount.
    pub(super) fn supervisor(&self) -> u32 {
        self.0.supervisor.load(Ordering::Relaxed)
    }

    fn link(&self) -> Arc<Link> {
        self.0.link.lock().clone()
    }

    pub(super) fn epitaph(&self) -> Option<&str> {
        self.0.epitaph.as_deref()
    }

    /// Requests that are to be refused.
    fn suspects(&self) -> &[u64] {
        &self.0.suspects
    }

    /// What lies on disk may be what the last worker has died of.
    pub(super) fn is_careful(&self) -> bool {
        self.0.careful
    }

    pub(super) fn connection(&self) -> u64 {
        self.0.estate.lock().0.connection
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.0.estate.lock().0.incarnation
    }

    pub(super) fn restarts(&self) -> u64 {
        self.0.estate.lock().0.restarts
    }

    /// The mount stands already: another worker has served it.
    pub(super) fn is_mounted(&self) -> bool {
        self.0.estate.lock().0.init.is_some()
    }

    /// Has the mount made, unless it stands.
    pub(super) fn mount(&self) -> Result<(), Error> {
        if self.is_mounted() {
            return Ok(());
        }
        self.report(&Report::Mount);
        loop {
            let heard = self.link().receive::<Order>().and_then(|heard| heard.ok_or(io::ErrorKind::BrokenPipe.into()));
            match heard.map_err(|error| refusal::io("the supervisor", &error))? {
                (Order::Mounted { init }, descriptors) => {
                    let mut descriptors = descriptors.into_iter();
                    let mut estate = self.0.estate.lock();
                    estate.0.init = Some(init);
                    (estate.1.listener, estate.1.kernel) = (descriptors.next(), descriptors.next());
                    return Ok(());
                }
                (Order::NotMounted { line }, _) => return Err(refusal::told(line)),
                (Order::Ping, _) => self.report(&Report::Pong),
                // What asks for the end is said again once the mount is up.
                _ => {}
            }
        }
    }

    /// The kernel's connection, how it was greeted, and the control socket.
    pub(super) fn mounted(&self) -> io::Result<(OwnedFd, Greeting, UnixListener)> {
        let missing = || io::Error::other("the supervisor has handed over no mount");
        let estate = self.0.estate.lock();
        let copy = |fd: &Option<OwnedFd>| fd.as_ref().ok_or_else(missing)?.as_fd().try_clone_to_owned();
        let (kernel, listener) = (copy(&estate.1.kernel)?, copy(&estate.1.listener)?);
        let greeting =
            Greeting { init: estate.0.init.clone().ok_or_else(missing)?, reply: estate.0.init_reply.clone() };
        Ok((kernel, greeting, listener.into()))
    }

    /// The reply to the kernel's INIT, before the kernel gets it.
    pub(super) fn agree(&self, reply: &[u8]) -> io::Result<()> {
        self.0.estate.lock().0.init_reply = Some(reply.to_vec());
        self.link().send(&Report::InitReply(reply.to_vec()), &[])
    }

    pub(super) fn report(&self, report: &Report) {
        if let Err(error) = self.link().send(report, &[]) {
            log::debug!("the supervisor cannot be told: {error}");
        }
    }

    /// Why this worker cannot serve.
    pub fn failed(&self, line: String) {
        self.report(&Report::Failed(line));
    }

    /// Waits for orders in a thread of its own. `gone` is called when the supervisor is; whether there is another then.
    pub(super) fn listen(
        &self,
        obey: impl Fn(Order) + Send + 'static,
        gone: impl Fn(&Self) -> bool + Send + 'static,
    ) -> io::Result<()> {
        let own = self.clone();
        let work = move || {
            loop {
                match own.link().receive::<Order>() {
                    Ok(Some((order, _))) => obey(order),
                    Ok(None) if gone(&own) => {}
                    Ok(None) => return,
                    Err(error) => log::error!("an order makes no sense: {error}"),
                }
            }
        };
        std::thread::Builder::new().name("orders".into()).spawn(work).map(drop)
    }

    /// Starts another supervisor: the one before has died.
    pub(super) fn replace_supervisor(&self) -> io::Result<()> {
        let estate = self.0.estate.lock();
        // The worker after this one must not give out the same numbers.
        let next = Estate { incarnation: estate.0.incarnation + 1, ..estate.0.clone() };
        let (pid, link) = start_supervisor(&next, &estate.1)?;
        *self.0.link.lock() = Arc::new(link);
        self.0.supervisor.store(pid, Ordering::Relaxed);
        Ok(())
    }

    /// The binary on disk that an upgrade would take.
    pub(super) fn program(&self) -> PathBuf {
        self.0.estate.lock().0.program.clone()
    }

    /// Whether this worker ends with its supervisor.
    pub(super) fn is_tied(&self) -> bool {
        self.0.estate.lock().0.tied
    }
}

/// What a new mount begins with.
///
/// # Errors
/// The program does not find itself.
pub fn estate(config: &MountConfig) -> io::Result<Estate> {
    Ok(Estate {
        mount: plan(config),
        socket: config.socket.clone(),
        program: std::env::current_exe()?,
        arguments: Estate::own_arguments(),
        init: None,
        init_reply: None,
        connection: connection_id(),
        incarnation: 0,
        restarts: 0,
        tied: std::env::var_os(TIED_VARIABLE).is_some_and(|value| value == OsStr::new("1")),
    })
}

/// A number that no other connection has had on this state folder.
fn connection_id() -> u64 {
    let id = SessionId::generate(micros(now()));
    id.created_micros() ^ (u64::from(std::process::id()) << 52)
}

/// How to mount.
pub(super) fn plan(config: &MountConfig) -> MountPlan {
    MountPlan {
        mountpoint: config.mountpoint.clone(),
        source: config.spec.clone(),
        read_only: config.files.read_only,
        allow_other: config.files.access != Access::Owner,
        flags: config.files.kernel_flags.clone(),
    }
}

/// Requests in work, as the supervisor sees them, and those that are to be refused.
#[derive(Debug)]
pub(super) struct Watched {
    in_work: InWork,
    refused: Vec<u64>,
}

impl Watched {
    pub(super) fn of(supervised: Option<&Supervised>) -> io::Result<Self> {
        let Some(supervised) = supervised else {
            return Ok(Self { in_work: InWork::unseen(), refused: Vec::new() });
        };
        let in_work = InWork::open(&supervised.0.estate.lock().1.slots)?;
        in_work.watch_deaths()?;
        Ok(Self { in_work, refused: supervised.suspects().to_vec() })
    }
}

impl Watch for Watched {
    fn begin(&self, unique: u64) -> Option<Box<dyn Send>> {
        if self.refused.contains(&unique) {
            log::error!("request {unique} has ended three workers; it is answered EIO");
            return None;
        }
        Some(Box::new(self.in_work.begin(unique)))
    }

    fn turn_to(&self, unique: u64) {
        self.in_work.turn_to(unique);
    }
}
