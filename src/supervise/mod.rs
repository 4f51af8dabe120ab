//! The supervisor: holds the kernel's connection, and sees to it that a worker serves it.
//!
//! As long as this process lives, the kernel keeps the mount and every request that was not answered; a worker may
//! die at any instant. So it does as little as can be: it mounts, starts workers, waits, passes signals on. One
//! thread, no network, no data, no journal. It speaks with its worker by [`Order`] and [`Report`].

mod estate;
mod inherit;
mod link;
mod signals;
mod slots;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

pub use estate::{Descriptors, Estate, memory_file, read_memory_file};
pub use inherit::{Inheritance, inherited, start_supervisor};
pub use link::{Link, Order, Report};
pub use slots::{InWork, Slot};

use crate::base::checked;
use crate::control::{READY_VARIABLE, Ready, bind};
use crate::fuse::{KernelMount, recovery_is_transparent, unmount};
use signals::{Signals, unblock_all};
use slots::Slots;

/// Tells a process that it is a worker, and the descriptor of its end of the link.
pub const WORKER_VARIABLE: &str = "_OSSFUSE_WORKER";
/// How often a worker is asked whether it is alive, and how long it may leave that unanswered.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_PATIENCE: Duration = Duration::from_secs(60);
/// Another such time, in seconds, for tests.
const PATIENCE_VARIABLE: &str = "_OSSFUSE_PING_PATIENCE";
/// The pause before a worker is started in the place of one that died of its own doing before it served, doubled
/// from the one to the other.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Such deaths before a mount that has never been up is given up.
const EARLY_DEATHS_MAX: u32 = 3;

/// How a mount under supervision ended.
#[derive(Debug)]
pub enum Outcome {
    /// It was unmounted.
    Ended,
    /// It never came up; the line says why.
    Failed(String),
}

/// The process of a worker.
#[derive(Debug)]
enum Process {
    Child(Child),
    /// One that another supervisor has started: its end can be seen, not how it came.
    Adopted {
        pid: u32,
        handle: OwnedFd,
    },
}

/// A running worker.
#[derive(Debug)]
struct Worker {
    process: Process,
    link: Link,
    up: bool,
    /// It has said that it cannot serve, and why.
    failed: Option<String>,
    /// The link is closed: it is about to be found dead.
    silent: bool,
    asked_at: Option<Instant>,
}

#[derive(Debug)]
struct Supervisor {
    estate: Estate,
    descriptors: Descriptors,
    ready: Ready,
    signals: Signals,
    worker: Option<Worker>,
    /// Some worker has served.
    was_up: bool,
    early_deaths: u32,
    /// When the next worker is started.
    due: Option<Instant>,
    next_ping: Instant,
    /// How often is asked, and how long is waited.
    ping: (Duration, Duration),
    /// How often somebody has asked for the end.
    stops: u32,
    epitaph: Option<String>,
    /// The mount is gone and nothing is pending.
    ending: bool,
    /// The worker is ended for the sake of the binary on disk.
    upgrading: bool,
    slots: Slots,
}

/// Serves a mount until it ends. `ready` hears once it answers.
///
/// # Errors
/// The operating system refuses what every process is allowed.
pub fn run(estate: Estate, settings: OwnedFd, ready: Ready) -> io::Result<Outcome> {
    let signals = Signals::watch()?;
    let slots = Slots::create()?;
    let descriptors = Descriptors { settings, slots: slots.descriptor()?, listener: None, kernel: None };
    let ping = ping_times();
    let supervisor = Supervisor {
        estate,
        descriptors,
        ready,
        signals,
        worker: None,
        was_up: false,
        early_deaths: 0,
        due: Some(Instant::now()),
        next_ping: Instant::now() + ping.0,
        ping,
        stops: 0,
        epitaph: None,
        ending: false,
        upgrading: false,
        slots,
    };
    supervisor.supervise()
}

/// Takes a mount over from another supervisor.
///
/// # Errors
/// As [`run`].
pub fn take_over(Inheritance { estate, descriptors, worker }: Inheritance) -> io::Result<Outcome> {
    // SAFETY: a terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"ossfuse".as_ptr()) };
    let signals = Signals::watch()?;
    let slots = Slots::adopt(descriptors.slots.try_clone()?)?;
    announce(std::process::id(), &estate.mount.mountpoint);
    let worker = match worker {
        Some((pid, link)) => {
            let process = Process::Adopted { pid, handle: open_process(pid)? };
            Some(Worker { process, link, up: true, failed: None, silent: false, asked_at: None })
        }
        None => None,
    };
    let (now, ping) = (Instant::now(), ping_times());
    let supervisor = Supervisor {
        estate,
        descriptors,
        ready: Ready::nobody(),
        signals,
        due: worker.is_none().then_some(now),
        worker,
        was_up: true,
        early_deaths: 0,
        next_ping: now + ping.0,
        ping,
        stops: 0,
        epitaph: None,
        ending: false,
        upgrading: false,
        slots,
    };
    supervisor.supervise()
}

/// A descriptor that becomes readable when a process has ended.
fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the descriptor is ours from then on.
    unsafe {
        let fd = checked(libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

impl Process {
    fn id(&self) -> u32 {
        match self {
            Self::Child(child) => child.id(),
            Self::Adopted { pid, .. } => *pid,
        }
    }

    /// How it has ended, if it has.
    fn end(&mut self) -> Option<ExitStatus> {
        match self {
            Self::Child(child) => child.try_wait().ok().flatten(),
            // How is not known: as if from outside.
            Self::Adopted { handle, .. } => poll(&[handle.as_raw_fd()], 0).then(|| ExitStatus::from_raw(libc::SIGKILL)),
        }
    }

    fn kill(&mut self) {
        // One that has ended is no harm: nobody else has its number before it was waited for, or seen to end.
        // SAFETY: a plain system call.
        unsafe { libc::kill(self.id() as libc::pid_t, libc::SIGKILL) };
    }
}

impl Supervisor {
    fn supervise(mut self) -> io::Result<Outcome> {
        loop {
            if self.due.is_some_and(|due| due <= Instant::now()) {
                self.start_worker()?;
            }
            self.wait();
            self.listen();
            for signal in self.signals.take() {
                match signal {
                    libc::SIGTERM | libc::SIGINT => self.stop(),
                    libc::SIGHUP => self.order(&Order::Reload),
                    _ => {}
                }
            }
            if let Some(outcome) = self.bury() {
                return Ok(outcome);
            }
            self.ping();
        }
    }

    fn start_worker(&mut self) -> io::Result<()> {
        self.due = None;
        let (ours, theirs) = Link::pair()?;
        let fd = theirs.as_raw_fd();
        let tied = self.estate.tied;
        // Not the file on disk, which may be another version by now.
        let mut command = Command::new("/proc/self/exe");
        let arguments = self.estate.arguments();
        if let Some((name, rest)) = arguments.split_first() {
            command.arg0(name).args(rest);
        }
        // A group of its own: Ctrl-C is for the supervisor.
        command.env(WORKER_VARIABLE, fd.to_string()).env_remove(READY_VARIABLE).stdin(Stdio::null()).process_group(0);
        // SAFETY: the closure makes system calls only, which is all that may be done between fork and exec.
        unsafe { command.pre_exec(move || prepare_child(fd, tied)) };
        let child = command.spawn()?;
        drop(theirs);
        let welcome = Order::Welcome {
            estate: Box::new(self.estate.clone()),
            supervisor: std::process::id(),
            epitaph: self.epitaph.take(),
            suspects: self.slots.suspects(),
            careful: self.estate.incarnation == 0 || self.early_deaths > 0,
        };
        self.estate.incarnation += 1;
        // One that is dead already is buried like any other.
        drop(ours.send(&welcome, &self.descriptors.raw()));
        self.worker = Some(Worker {
            process: Process::Child(child),
            link: ours,
            up: false,
            failed: None,
            silent: false,
            asked_at: None,
        });
        Ok(())
    }

    /// Waits for a signal, a message, or the time for the next step.
    fn wait(&self) {
        let now = Instant::now();
        let wake = self.due.unwrap_or(self.next_ping).saturating_duration_since(now);
        let timeout = i32::try_from(wake.as_millis() + 1).unwrap_or(i32::MAX);
        let link = self.worker.as_ref().filter(|worker| !worker.silent).map_or(-1, |worker| worker.link.as_raw_fd());
        let process = match self.worker.as_ref().map(|worker| &worker.process) {
            Some(Process::Adopted { handle, .. }) => handle.as_raw_fd(),
            _ => -1,
        };
        poll(&[self.signals.as_raw_fd(), link, process], timeout);
    }

    /// Takes what the worker has said.
    fn listen(&mut self) {
        while let Some(worker) = self.worker.as_mut().filter(|worker| !worker.silent) {
            match worker.link.receive_now::<Report>() {
                Ok(Some((report, _))) => self.hear(report),
                Ok(None) => worker.silent = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => log::error!("a message of the worker makes no sense: {error}"),
            }
        }
    }

    fn hear(&mut self, report: Report) {
        match report {
            Report::Mount => match self.mount() {
                Ok(init) => {
                    let kernel = self.descriptors.raw().split_off(2);
                    self.send(&Order::Mounted { init }, &kernel);
                }
                Err(line) => self.send(&Order::NotMounted { line }, &[]),
            },
            Report::InitReply(reply) => self.estate.init_reply = Some(reply),
            Report::Up => {
                self.with_worker(|worker| worker.up = true);
                self.came_up();
            }
            Report::Failed(line) => self.with_worker(|worker| worker.failed = Some(line)),
            Report::Pong => {
                self.with_worker(|worker| worker.asked_at = None);
                self.early_deaths = 0;
                notify(&[NotifyState::Watchdog]);
            }
            Report::Ending => {
                self.ending = true;
                self.close_door();
                self.order(&Order::Farewell);
            }
            Report::Upgrade => {
                notify(&[NotifyState::Status("upgrading")]);
                self.upgrading = true;
                self.with_worker(|worker| worker.process.kill());
            }
            Report::Unknown => {}
        }
    }

    fn with_worker(&mut self, change: impl FnOnce(&mut Worker)) {
        if let Some(worker) = &mut self.worker {
            change(worker);
        }
    }

    fn came_up(&mut self) {
        if !self.was_up {
            self.was_up = true;
            self.ready.up();
            announce(std::process::id(), &self.estate.mount.mountpoint);
        }
        for _ in 0..self.stops {
            self.pass_stop();
        }
    }

    /// Mounts, and takes the kernel's greeting.
    fn mount(&mut self) -> Result<Vec<u8>, String> {
        let place = self.estate.mount.mountpoint.display().to_string();
        let mount = KernelMount::make(&self.estate.mount)
            .map_err(|error| format!("{place}: {error}; check the mount point and your rights"))?;
        let attach = |mount: &KernelMount| -> io::Result<(OwnedFd, Vec<u8>, OwnedFd)> {
            Ok((mount.connection()?, mount.read_init()?, bind(&self.estate.socket)?.into()))
        };
        match attach(&mount) {
            Ok((kernel, init, listener)) => {
                self.estate.init = Some(init.clone());
                (self.descriptors.listener, self.descriptors.kernel) = (Some(listener), Some(kernel));
                Ok(init)
            }
            Err(error) => {
                self.detach();
                Err(format!("{place}: {error}; see the log"))
            }
        }
    }

    fn detach(&self) {
        if let Err(error) = unmount(&self.estate.mount.mountpoint, true) {
            log::debug!("{error}");
        }
    }

    /// From here on nobody can ask for this mount.
    fn close_door(&mut self) {
        if self.descriptors.listener.take().is_some()
            && let Err(error) = std::fs::remove_file(&self.estate.socket)
        {
            log::debug!("the control socket: {error}");
        }
    }

    /// Somebody asks for the end: first with all that is pending sent, then at once.
    fn stop(&mut self) {
        self.stops += 1;
        notify(&[NotifyState::Stopping, NotifyState::Status("sending what is pending")]);
        if self.was_up {
            self.pass_stop();
        } else if let Some(worker) = &mut self.worker {
            worker.failed =
                Some(format!("{}: interrupted; nothing is mounted", self.estate.mount.mountpoint.display()));
            worker.process.kill();
        }
    }

    fn pass_stop(&self) {
        self.order(if self.stops > 1 { &Order::Force } else { &Order::Drain });
    }

    fn order(&self, order: &Order) {
        self.send(order, &[]);
    }

    /// A worker that cannot be told is dead, or will be found hanging.
    fn send(&self, order: &Order, descriptors: &[RawFd]) {
        if let Some(worker) = &self.worker
            && let Err(error) = worker.link.send(order, descriptors)
        {
            log::debug!("the worker cannot be told: {error}");
        }
    }

    /// Looks whether the worker has died, and sees to the next one.
    fn bury(&mut self) -> Option<Outcome> {
        let status = self.worker.as_mut()?.process.end()?;
        // What it said last counts.
        self.listen();
        let worker = self.worker.take()?;
        if self.ending || status.success() {
            self.close_door();
            return Some(Outcome::Ended);
        }
        if self.upgrading {
            return self.upgrade();
        }
        let own = is_own_doing(status);
        let told = worker.failed.clone().unwrap_or_else(|| describe(status));
        if own && !worker.up {
            self.early_deaths += 1;
        }
        if own {
            self.slots.blame();
        }
        if !self.was_up && (worker.failed.is_some() || self.early_deaths >= EARLY_DEATHS_MAX) {
            self.close_door();
            if self.descriptors.kernel.is_some() {
                self.detach();
            }
            let place = self.estate.mount.mountpoint.display();
            let line = worker
                .failed
                .unwrap_or_else(|| format!("{place}: the mount ended before it answered ({told}); see the log"));
            return Some(Outcome::Failed(line));
        }
        let pause = if own && !worker.up { back_off(self.early_deaths) } else { Duration::ZERO };
        if self.was_up {
            self.estate.restarts += 1;
        }
        let pid = worker.process.id();
        log::warn!("worker {pid} has ended: {told}; the next one is started");
        self.epitaph = Some(format!("worker {pid} before this one has ended: {told}"));
        if !self.estate.init.as_deref().is_none_or(recovery_is_transparent) {
            self.give_mount_up();
        }
        self.due = Some(Instant::now() + pause);
        None
    }

    /// The worker has made way: the binary on disk takes the place of this process, and starts the next one.
    fn upgrade(&mut self) -> Option<Outcome> {
        self.upgrading = false;
        self.estate.restarts += 1;
        let error = inherit::replace(&self.estate, &self.descriptors);
        log::error!("{} cannot be executed: {error}; going on as before", self.estate.program.display());
        self.due = Some(Instant::now());
        None
    }

    /// This kernel does not send its requests again: whoever waits for an answer gets an error, and the next worker
    /// mounts anew at the same place.
    fn give_mount_up(&mut self) {
        self.detach();
        self.close_door();
        // The last descriptor: the kernel ends all requests.
        self.descriptors.kernel = None;
        (self.estate.init, self.estate.init_reply) = (None, None);
        self.estate.connection = self.estate.connection.wrapping_add(1);
    }

    /// Asks the worker whether it is alive; one that has not answered for long is killed.
    fn ping(&mut self) {
        let now = Instant::now();
        if now < self.next_ping {
            return;
        }
        let (every, patience) = self.ping;
        self.next_ping = now + every;
        // Before the first mount stands it waits for the service, as long as it was told.
        let was_up = self.was_up;
        let Some(worker) = self.worker.as_mut().filter(|_| was_up) else { return };
        match worker.asked_at {
            Some(at) if now - at > patience => {
                log::error!(
                    "worker {} has not answered for {} s; it is replaced",
                    worker.process.id(),
                    patience.as_secs()
                );
                worker.process.kill();
            }
            Some(_) => {}
            None => {
                worker.asked_at = Some(now);
                self.order(&Order::Ping);
            }
        }
    }
}

/// In the child: the link stays open, signals come through.
fn prepare_child(link: RawFd, tied: bool) -> io::Result<()> {
    unblock_all()?;
    // SAFETY: plain system calls without pointers.
    unsafe {
        if tied {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
        checked(libc::fcntl(link, libc::F_SETFD, 0)).map(drop)
    }
}

/// Whether a worker has brought its death on itself. SIGKILL and SIGTERM come from outside.
fn is_own_doing(status: ExitStatus) -> bool {
    !matches!(status.signal(), Some(libc::SIGKILL | libc::SIGTERM))
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("exit status {}", status.code().unwrap_or_default()),
    }
}

/// How often a worker is asked, and how long is waited for its answer.
fn ping_times() -> (Duration, Duration) {
    let told = std::env::var(PATIENCE_VARIABLE).ok().and_then(|seconds| seconds.parse().ok());
    let patience = told.map_or(PING_PATIENCE, Duration::from_secs);
    (PING_EVERY.min(patience / 4), patience)
}

fn back_off(deaths: u32) -> Duration {
    (BACK_OFF.0 * 2_u32.saturating_pow(deaths.saturating_sub(1))).min(BACK_OFF.1)
}

/// Waits until one of the descriptors can be read; -1 is none.
fn poll(descriptors: &[RawFd], timeout_ms: i32) -> bool {
    let mut polled: Vec<libc::pollfd> =
        descriptors.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the array lives through the call.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout_ms) > 0 }
}

/// Tells systemd which process holds a mount that is served.
pub fn announce(supervisor: u32, mountpoint: &Path) {
    let serving = format!("serving {}", mountpoint.display());
    notify(&[NotifyState::MainPid(supervisor), NotifyState::Ready, NotifyState::Status(&serving)]);
}

/// Tells systemd, where it has asked for that.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!("systemd cannot be told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_to_its_bound() {
        let pauses: Vec<u64> = (1..10).map(|deaths| back_off(deaths).as_millis() as u64).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }

    #[test]
    fn a_kill_comes_from_outside() {
        let of = |raw| is_own_doing(ExitStatus::from_raw(raw));
        assert!(!of(libc::SIGKILL) && !of(libc::SIGTERM));
        assert!(of(libc::SIGABRT) && of(libc::SIGSEGV) && of(1 << 8));
    }
}
