//! What befalls the worker of a mount while work goes on: struck again and again, and each time soon after it has come up.

use std::fs;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::harness::{Finally, Mount, is_alive, noise, signal, wait_for, wait_until};

/// When a worker is struck, and how often that happens.
#[derive(Debug, Clone)]
pub(super) struct When {
    /// Microseconds since it came up.
    pub(super) after: Range<u64>,
    /// A worker has come up once it has answered a request; else once it could.
    pub(super) answered: bool,
    /// Then the rest of the work is done in peace.
    pub(super) most: u32,
}

/// Workers struck so far.
#[derive(Debug, Default)]
pub(super) struct Strikes(AtomicU32);

impl Strikes {
    pub(super) fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Kills a worker.
pub(super) fn kill(worker: u32) {
    signal(worker, libc::SIGKILL);
    wait_until("it is dead", || !is_alive(worker));
}

/// Runs `work` while workers are struck; with how many were.
pub(super) fn under<T>(
    mount: &Mount<'_>,
    when: &When,
    strike: impl Fn(u32) + Sync,
    work: impl FnOnce(&Strikes) -> T,
) -> (T, u32) {
    let (stop, strikes) = (AtomicBool::new(false), Strikes::default());
    let done = thread::scope(|scope| {
        scope.spawn(|| {
            // Nobody must wait for a worker that does not come.
            let _end = Finally(|| {
                if thread::panicking() {
                    signal(mount.pid(), libc::SIGKILL);
                }
            });
            strike_on(mount, when, &strike, &stop, &strikes);
        });
        let _stop = Finally(|| stop.store(true, Ordering::Relaxed));
        work(&strikes)
    });
    (done, strikes.count())
}

fn strike_on(mount: &Mount<'_>, when: &When, strike: &impl Fn(u32), stop: &AtomicBool, strikes: &Strikes) {
    let random = noise(u64::from(mount.pid()), 8 * when.most as usize);
    let mut last = 0;
    for roll in random.chunks_exact(8) {
        let roll = u64::from_le_bytes(roll.try_into().unwrap());
        // One that was struck may not be reaped yet.
        let next = || mount.children().pop().filter(|pid| *pid != last && serves(*pid));
        let Some(worker) = wait_for("a worker serves", || if is_set(stop) { Some(None) } else { next().map(Some) })
        else {
            return;
        };
        if when.answered {
            ask_for_use(mount);
        }
        thread::sleep(Duration::from_micros(when.after.start + roll % (when.after.end - when.after.start)));
        if is_set(stop) {
            return;
        }
        strike(worker);
        last = worker;
        strikes.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn is_set(stop: &AtomicBool) -> bool {
    stop.load(Ordering::Relaxed)
}

/// Asks what the kernel never knows by itself; returns when a worker has answered.
fn ask_for_use(mount: &Mount<'_>) {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(mount.path("").as_os_str().as_bytes()).unwrap();
    // SAFETY: all zeros are a valid statvfs; the path and the struct live through the call.
    let done = unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        libc::statvfs(path.as_ptr(), &raw mut found)
    };
    assert_eq!(done, 0, "statvfs: {}", std::io::Error::last_os_error());
}

/// Whether fuser's threads run.
fn serves(pid: u32) -> bool {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.any(|thread| fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.starts_with("fuser-")))
}
