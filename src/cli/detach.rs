//! Starts a mount in the background and waits until it answers.
//!
//! The same program is started anew with the same arguments; a fork alone would leave its threads behind. It learns
//! from a variable that it is the mount. Access keys travel by the environment or the config file, never as
//! arguments. A mount that is not up when the command gives up is ended: exit status 1 means nothing is mounted.

use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::mountinfo::{self, Pulse};
use super::{Error, complain};
use crate::base::units::format_duration;
use crate::config::MountConfig;
use crate::control::{READY_VARIABLE, Started, read_started};
use crate::logging;

/// How much longer than `--mount-timeout` the command waits: the mount itself knows better why it is late.
const MARGIN: Duration = Duration::from_secs(10);
/// How long a mount that is given up may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(5);

/// What ends the wait.
enum Heard {
    Started(Started),
    TimedOut,
    Interrupted,
}

/// Starts the mount; returns once it answers.
///
/// # Errors
/// Why it does not.
pub(super) fn start(config: &MountConfig) -> Result<(), Error> {
    let place = config.mountpoint.display();
    let (child, pipe) =
        spawn(config).map_err(|error| Error::new(&place, format!("the mount cannot be started: {error}"), ""))?;
    let heard = wait(pipe, config.mount_timeout + MARGIN);
    if matches!(heard, Ok(Heard::Started(Started::Up))) {
        return Ok(());
    }
    let epitaph = end(child, matches!(heard, Ok(Heard::Started(_))));
    clear(&config.mountpoint);
    Err(explain(heard, &epitaph, config))
}

/// Why there is no mount.
fn explain(heard: io::Result<Heard>, epitaph: &str, config: &MountConfig) -> Error {
    let log = config.log.file.as_deref().map_or(String::new(), |log| format!("see {}", log.display()));
    let (why, mend) = match heard {
        Ok(Heard::Started(Started::Failed(line))) => return Error::line(line),
        Ok(Heard::Started(Started::Up | Started::Died)) => {
            (format!("the mount ended before it answered ({epitaph})"), log)
        }
        Ok(Heard::TimedOut) => {
            let limit = format_duration(config.mount_timeout);
            (format!("the mount did not answer within {limit}"), format!("{log}, or give a longer --mount-timeout"))
        }
        Ok(Heard::Interrupted) => ("interrupted before the mount answered".to_owned(), "nothing is mounted".to_owned()),
        Err(error) => (format!("the mount cannot be waited for: {error}"), log),
    };
    Error::new(config.mountpoint.display(), why, mend)
}

fn spawn(config: &MountConfig) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let fd = writer.as_raw_fd();
    let mut command = Command::new(std::env::current_exe()?);
    // Under the name it has now, which tells mount(8)'s helper, and so what the arguments mean.
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command.args(std::env::args_os().skip(1)).env(READY_VARIABLE, fd.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr_of(config)?);
    // SAFETY: the closure makes system calls only, which is all that may be done between fork and exec.
    unsafe { command.pre_exec(move || leave_session(fd)) };
    let child = command.spawn()?;
    Ok((child, reader))
}

/// What a mount says outside the log, such as the last words of a panic, goes there all the same.
fn stderr_of(config: &MountConfig) -> io::Result<File> {
    match &config.log.file {
        Some(path) => logging::append_to(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        None => File::options().write(true).open("/dev/null"),
    }
}

/// In the child: away from the terminal, and with nothing open but the standard streams and the pipe.
fn leave_session(pipe: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls without pointers; the descriptor stays open in the parent until after exec.
    let done = unsafe {
        libc::setsid();
        // Kernels before 5.11 do not know it; then what leaks is what the caller has left open.
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        libc::fcntl(pipe, libc::F_SETFD, 0)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn wait(pipe: PipeReader, patience: Duration) -> io::Result<Heard> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let heard = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let started = tokio::task::spawn_blocking(|| read_started(pipe));
        Ok(tokio::select! {
            started = started => Heard::Started(started.map_err(io::Error::other)?),
            () = tokio::time::sleep(patience) => Heard::TimedOut,
            _ = interrupt.recv() => Heard::Interrupted,
            _ = terminate.recv() => Heard::Interrupted,
        })
    });
    // The pipe may still be being read.
    runtime.shutdown_background();
    heard
}

/// Ends a mount that is given up, unless it ends by itself, and tells how it went.
fn end(mut child: Child, by_itself: bool) -> String {
    if let (false, Ok(pid)) = (by_itself, i32::try_from(child.id())) {
        // SAFETY: our own child that nobody has waited for, so the number is still its.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
    let deadline = Instant::now() + FAREWELL;
    while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(20));
    }
    // One that has ended already cannot be killed, and is waited for all the same.
    match child.kill().and_then(|()| child.wait()) {
        Ok(status) => match status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => format!("exit status {}", status.code().unwrap_or_default()),
        },
        Err(error) => error.to_string(),
    }
}

/// Takes away what an ended mount may have left at its place.
fn clear(mountpoint: &Path) {
    let left = mountinfo::at(mountpoint).ok().flatten().is_some_and(|mounted| mounted.is_ours());
    if left
        && mountinfo::pulse(mountpoint) == Pulse::Dead
        && let Err(error) = mountinfo::detach(mountpoint)
    {
        complain(&format!("{}: a dead mount stays: {error}", mountpoint.display()));
    }
}
