//! Serves one mount, from the opening of its state to its end: puts all the parts together.
//!
//! The order of the start: own the state folder, speak with the bucket, open journal and spill, take up the
//! sessions of an earlier process, mount, answer. The end: nothing is pending, the mount is gone, the process too.

mod connect;
mod drain;
mod journal;
mod reach;
mod recover;
mod refusal;
mod status;
mod supervised;
mod sync;
mod upgrade;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::base::limits::{KIB, MIB};
use crate::base::{Budget, SessionId};
use crate::config::{
    CloseMode, ContentType, ExclusiveCreate, FsyncMode, MetadataMode, MountConfig, OnKill, RecoverMode, SymlinkMode,
};
use crate::control::server::{Busy, Progress, Server};
use crate::control::{Failure, Ready, Request, Response};
use crate::credentials::Keeper;
use crate::fuse::{self, Adapter, Greeting, KernelMount};
use crate::intent::{IntentRecord, IntentStore};
use crate::ledger::{Ledger, Table};
use crate::oss::Client;
use crate::read::{ReadEngine, ReadOptions};
use crate::replay::{self, Carried, Mode, Replay};
use crate::spill::{Layout, LockedFolder, SpillStore};
use crate::supervise::{Order, Report};
use crate::upload::{UploadEngine, UploadOptions};
use crate::vfs::{AttrOptions, Handed, LinkForm, Vfs, VfsOptions};
use crate::write::WriteEngine;
use drain::{Drain, Drained};
use supervised::Watched;

pub use connect::{ConnectError, connect};
pub use journal::probe_if_asked;
pub use recover::{RecoverAction, RecoverFailure, is_local, owned_uploads_offline, recover_offline};
pub use refusal::Error;
pub use supervised::{Supervised, accept_if_asked, estate};
pub use upgrade::tell_formats_if_asked;

/// Threads that drive the network.
const NETWORK_THREADS: usize = 2;
/// Of the memory limit, what is not for read buffers: bodies on their way up, and the program itself.
const MEMORY_RESERVE: u64 = 64 * MIB;

/// Least bytes of a block of a reader whose rate is limited.
const READ_CHUNK_MIN: u64 = 64 * KIB;

/// How long answers on the control socket may take to get out at the end.
const ANSWERS_MAX: Duration = Duration::from_secs(2);

/// A mount and all that belongs to it.
struct Worker {
    config: MountConfig,
    client: Client,
    keeper: Arc<Keeper>,
    vfs: Arc<Vfs>,
    drain: Drain,
    started_at: std::time::SystemTime,
    supervised: Option<Supervised>,
    /// What the death of this process means to applications, once that is known.
    transparent: OnceLock<bool>,
    /// The bucket has answered since the start.
    connected: AtomicBool,
}

/// All that a worker needs to serve.
struct Assembled {
    worker: Worker,
    replay: Replay,
    /// Work of several steps that an earlier process has begun.
    left: Vec<IntentRecord>,
}

/// The kernel's side of the mount.
struct Kernel {
    connection: OwnedFd,
    greeting: Greeting,
    control: Server,
}

/// Mounts, calls `ready.up()` once the mount answers, and serves until it is unmounted: all in this process.
///
/// # Errors
/// The mount could not come up, in one line.
pub fn run(config: MountConfig, ready: Ready) -> Result<(), Error> {
    let (folder, runtime) = begin(&config)?;
    let assembled = assemble(&config, &folder, &runtime, None)?;
    let mount = KernelMount::make(&supervised::plan(&config)).map_err(|error| refusal::mount(&config, &error))?;
    let kernel = || -> io::Result<Kernel> {
        let _inside = runtime.enter();
        let greeting = Greeting { init: mount.read_init()?, reply: None };
        Ok(Kernel { connection: mount.connection()?, greeting, control: Server::bind(&config.socket)? })
    };
    let kernel = kernel().map_err(|error| refusal::io("the mount", &error))?;
    serve(assembled, kernel, &runtime, move || ready.up())
}

/// Serves a mount for a supervisor, which has it made once it can be served, or has it from an earlier worker.
///
/// # Errors
/// It cannot be served, in one line.
pub fn run_supervised(config: MountConfig, supervised: Supervised) -> Result<(), Error> {
    if let Some(epitaph) = supervised.epitaph() {
        log::warn!("{epitaph}; taking over");
    }
    let (folder, runtime) = begin(&config)?;
    let assembled = assemble(&config, &folder, &runtime, Some(&supervised))?;
    supervised.mount()?;
    let kernel = || -> io::Result<Kernel> {
        let _inside = runtime.enter();
        let (connection, greeting, listener) = supervised.mounted()?;
        Ok(Kernel { connection, greeting, control: Server::adopt(listener)? })
    };
    let kernel = kernel().map_err(|error| refusal::io("the mount", &error))?;
    serve(assembled, kernel, &runtime, move || supervised.report(&Report::Up))
}

fn begin(config: &MountConfig) -> Result<(LockedFolder, Runtime), Error> {
    raise_file_limit();
    let owner = format!("process {} for {}", std::process::id(), config.mountpoint.display());
    let folder =
        LockedFolder::lock(Layout::new(&config.state_folder), &owner).map_err(|error| refusal::lock(&error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .thread_name("network")
        .enable_all()
        .build()
        .map_err(|error| refusal::io("the network threads", &error))?;
    Ok((folder, runtime))
}

/// Ends the process without unwinding anything.
fn exit(code: i32) -> ! {
    log::logger().flush();
    // SAFETY: ends the process; nothing runs after it.
    unsafe { libc::_exit(code) }
}

fn assemble(
    config: &MountConfig,
    folder: &LockedFolder,
    runtime: &Runtime,
    supervised: Option<&Supervised>,
) -> Result<Assembled, Error> {
    let _inside = runtime.enter();
    let again = supervised.is_some_and(Supervised::is_mounted);
    let (client, keeper) =
        runtime.block_on(connect(&config.connection)).map_err(|error| refusal::connection(config, &error))?;
    runtime.spawn(connect::keep_fresh(keeper.clone(), client.clone()));
    let careful = supervised.is_none_or(Supervised::is_careful);
    let (journal, _writer) = journal::open(&folder.layout().journal(), careful)?;
    let limit = spill_limit(config, folder.layout());
    // Parts that are on their way lie on the disk: no more of them than it may hold.
    let workers =
        config.writing.upload_workers.min(usize::try_from(limit / config.writing.part_size).unwrap_or(1).max(1));
    let budget = Budget::new(config.memory_limit.saturating_sub(MEMORY_RESERVE).max(16 * MIB));
    let upload = UploadEngine::new(client.clone(), journal, UploadOptions { workers }).within(budget.clone());
    let spill = SpillStore::open_limited(folder, limit);
    let write = WriteEngine::new(upload, spill, config.writing.part_size, runtime.handle().clone());
    write.hide_under(&config.connection.prefix);
    write.send_after(config.writing.send_after);
    let mut reading = ReadOptions::new(budget);
    reading.workers = config.reading.download_workers;
    if let Some(rate) = config.connection.limits.download {
        // Several requests a second: what one of them brings comes as fast as the line allows.
        reading.chunk = reading.chunk.min((rate / 4).next_power_of_two().max(READ_CHUNK_MIN));
        reading.first = reading.first.min(reading.chunk);
    }
    let read = ReadEngine::new(client.clone(), reading, runtime.handle().clone());
    let (intents, left) = IntentStore::open(folder.layout()).map_err(|error| refusal::replay(config, &error.into()))?;
    let (ledger, table) = match supervised {
        Some(supervised) => Ledger::open(&folder.layout().ledger(), supervised.connection())
            .map_err(|error| refusal::io("the ledger", &error))?,
        None => (Ledger::none(), Table::default()),
    };
    let incarnation = supervised.map_or(0, Supervised::incarnation);
    let handed = Handed { ledger, incarnation };
    let vfs = Vfs::new(vfs_options(config), read, write.clone(), intents, runtime.handle().clone(), handed);
    // Whoever uses a mount that stands does not wait for the service to be looked at.
    let connected = again || runtime.block_on(reach::at_start(config, &vfs, &client))?;
    let carried = carried(&table);
    let replay = Replay::prepare_carried(&write, mode_of(config.writing.recover), &carried)
        .map_err(|error| refusal::replay(config, &error))?;
    let left = vfs.restore(table, &replay.carried(), left);
    let drain = Drain::new(vfs.clone(), replay.sessions());
    let (config, supervised) = (config.clone(), supervised.cloned());
    let started_at = crate::base::time::now();
    let (transparent, connected) = (OnceLock::new(), AtomicBool::new(connected));
    let worker = Worker { config, client, keeper, vfs, drain, started_at, supervised, transparent, connected };
    Ok(Assembled { worker, replay, left })
}

/// The write sessions that the last worker had, and whether anybody still has their files open.
fn carried(table: &Table) -> BTreeMap<SessionId, Carried> {
    let with_session = table.inodes.iter().filter_map(|(ino, inode)| Some((*ino, inode.unlinked, inode.session?)));
    with_session
        .map(|(ino, unlinked, session)| {
            let mut handles = table.handles.values().filter(|handle| handle.ino == ino);
            // Without a name it lives as long as anybody has it open, be it for reading.
            let is_open = handles.any(|handle| handle.how.writable || unlinked);
            (session, if is_open { Carried::Open } else { Carried::Released })
        })
        .collect()
}

/// Bytes that spill files may take: what was asked for, else half of what is free on their disk, what lies there
/// already aside.
fn spill_limit(config: &MountConfig, layout: &Layout) -> u64 {
    let folder = layout.root();
    config.writing.spill_limit.unwrap_or_else(|| match crate::spill::free_bytes(folder) {
        Ok(free) => crate::spill::spilled_bytes(layout).saturating_add(free / 2),
        Err(error) => {
            log::warn!("{}: {error}; --spill-limit is not set", folder.display());
            u64::MAX
        }
    })
}

fn mode_of(mode: RecoverMode) -> Mode {
    match mode {
        RecoverMode::Safe => Mode::Safe,
        RecoverMode::Publish => Mode::Publish,
        RecoverMode::Keep => Mode::Keep,
    }
}

fn vfs_options(config: &MountConfig) -> VfsOptions {
    let files = &config.files;
    let content_type = match &files.content_type {
        ContentType::Auto => None,
        ContentType::Fixed(kind) => Some(kind.clone()),
    };
    VfsOptions {
        prefix: config.connection.prefix.clone(),
        attr: AttrOptions {
            uid: files.uid,
            gid: files.gid,
            file_mode: files.file_mode,
            dir_mode: files.dir_mode,
            posix: files.metadata == MetadataMode::Posix,
            content_type,
            storage_class: files.storage_class.map(ToOwned::to_owned),
            server_side_encryption: files.encryption.map(ToOwned::to_owned),
        },
        links: match files.symlinks {
            SymlinkMode::Body => LinkForm::Body,
            SymlinkMode::Meta => LinkForm::Meta,
            SymlinkMode::Native => LinkForm::Native,
        },
        attr_ttl: files.attr_ttl,
        list_ttl: files.list_ttl,
        read_only: files.read_only,
        close_local: config.writing.close == CloseMode::Local,
        exclusive_remote: config.writing.exclusive_create == ExclusiveCreate::Remote,
        fsync_remote: config.writing.fsync == FsyncMode::Remote,
        publish_killed: config.writing.on_kill == OnKill::Publish,
        capacity: files.capacity,
    }
}

/// Serves the kernel and the control socket until the mount is gone and nothing is pending.
fn serve(assembled: Assembled, kernel: Kernel, runtime: &Runtime, up: impl FnOnce()) -> Result<(), Error> {
    let Assembled { worker, replay, left } = assembled;
    let worker = Arc::new(worker);
    if let Some(id) = mount_id(&worker.config.mountpoint) {
        worker.vfs.set_mount_id(id);
    }
    let transparent = worker.supervised.is_some() && fuse::recovery_is_transparent(&kernel.greeting.init);
    if worker.transparent.set(transparent).is_err() {
        log::debug!("it was known what a crash means");
    }
    let outcome = serve_kernel(&worker, kernel, runtime, (replay, left), up);
    // Whatever is still running belongs to nobody: replies that are dropped must not be, so nothing is unwound.
    match outcome {
        Ok(()) => exit(0),
        Err(error) => Err(refusal::io("the mount", &error)),
    }
}

fn serve_kernel(
    worker: &Arc<Worker>,
    kernel: Kernel,
    runtime: &Runtime,
    (replay, left): (Replay, Vec<IntentRecord>),
    up: impl FnOnce(),
) -> io::Result<()> {
    let Kernel { connection, greeting, control } = kernel;
    let (handler, busy) = (worker.clone(), control.busy());
    let control = runtime.spawn(control.serve(move |request, progress| answer(handler.clone(), request, progress)));
    let farewell = take_orders(worker, runtime)?;
    let pending = replay.pending();
    if !worker.config.files.read_only {
        // Before any session is published: it may lie in a directory that was being moved.
        worker.vfs.take_up(left);
    }
    runtime.spawn(replay.run());
    if !worker.config.files.read_only {
        runtime.spawn(recover::expire(worker.clone()));
    }
    if let Some(after) = worker.config.writing.publish_after {
        worker.vfs.publish_after(after);
    }
    if worker.connected.load(Ordering::Relaxed) {
        worker.vfs.refresh_usage();
    } else {
        runtime.spawn(reach::later(worker.clone()));
    }
    let posix = worker.config.files.metadata == MetadataMode::Posix;
    let watch = Watched::of(worker.supervised.as_ref())?;
    let adapter = Adapter::new(worker.vfs.clone(), runtime.handle().clone(), !posix, Arc::new(watch));
    let place = worker.config.mountpoint.display().to_string();
    let agree = |reply: &[u8]| worker.supervised.as_ref().map_or(Ok(()), |supervised| supervised.agree(reply));
    let served = fuse::serve(adapter, &connection, &greeting, agree, || {
        log::info!("{} is mounted at {place}; {pending} files to be sent from before", worker.config.spec);
        up();
    });
    log::info!("{place}: unmounted");
    // A bare umount(2), or a lazy one, does not wait: what is pending is sent now.
    runtime.block_on(worker.drain.finish());
    if let Some(supervised) = &worker.supervised {
        supervised.report(&Report::Ending);
        // A supervisor that is gone, or hangs, needs no taking leave of.
        if farewell.recv_timeout(ANSWERS_MAX).is_err() {
            log::debug!("the supervisor says no farewell");
        }
    } else if let Err(error) = std::fs::remove_file(&worker.config.socket) {
        log::debug!("the control socket: {error}");
    }
    runtime.block_on(last_words(&busy));
    control.abort();
    served
}

/// Signals, or the orders of the supervisor. The receiver hears when that says farewell.
fn take_orders(worker: &Arc<Worker>, runtime: &Runtime) -> io::Result<std::sync::mpsc::Receiver<()>> {
    let (say, farewell) = std::sync::mpsc::channel();
    let Some(supervised) = worker.supervised.clone() else {
        runtime.spawn(unmount_on_signal(worker.clone()));
        runtime.spawn(reload_on_signal(worker.clone()));
        return Ok(farewell);
    };
    let (worker, runtime) = (worker.clone(), runtime.handle().clone());
    let pong = supervised.clone();
    let obey = move |order| match order {
        // By way of all that must not hang: the network threads, and the inode table.
        Order::Ping => {
            let (worker, pong) = (worker.clone(), pong.clone());
            runtime.spawn(async move {
                worker.vfs.inodes();
                pong.report(&Report::Pong);
            });
        }
        Order::Drain => drain_and_unmount(&worker, &runtime),
        Order::Force => detach_and_leave(&worker),
        Order::Reload => reload(&worker),
        // It is no harm where nobody waits for it.
        Order::Farewell => drop(say.send(())),
        Order::Welcome { .. } | Order::Mounted { .. } | Order::NotMounted { .. } | Order::Unknown => {}
    };
    let gone = |supervised: &Supervised| {
        if supervised.is_tied() {
            exit(1);
        }
        match supervised.replace_supervisor() {
            Ok(()) => {
                log::error!("the supervisor has died; {} takes its place", supervised.supervisor());
                true
            }
            Err(error) => {
                log::error!("the supervisor has died, and no other can be started: {error}");
                false
            }
        }
    };
    supervised.listen(obey, gone)?;
    Ok(farewell)
}

/// Lets answers that are being given get out: the one to `umount` is given while the mount is gone already.
async fn last_words(busy: &Busy) {
    let deadline = Instant::now() + ANSWERS_MAX;
    while busy.is_busy() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn answer(worker: Arc<Worker>, request: Request, progress: Progress) -> Response {
    match request {
        Request::Status => Response::Status { status: Box::new(status::of(&worker)) },
        Request::RecoverList => recover_list(&worker),
        Request::Upgrade => upgrade::of(&worker).await,
        Request::RecoverPublish { id, key } => recover::of_mount(&worker, &id, RecoverAction::Publish(key)).await,
        Request::RecoverExport { id, file } => recover::of_mount(&worker, &id, RecoverAction::Export(file)).await,
        Request::RecoverDiscard { id } => recover::of_mount(&worker, &id, RecoverAction::Discard).await,
        Request::OwnedUploads => recover::owned_uploads(&worker),
        Request::Log { level } => match level.parse() {
            Ok(level) => {
                crate::logging::set_level(level);
                log::info!("the log level is {level} from now on");
                Response::Done
            }
            Err(_) => failed(&worker, &format!("`{level}` is no log level")),
        },
        Request::Sync { path, timeout_ms } => {
            sync::answer(&worker, path, timeout_ms.map(Duration::from_millis), &progress).await
        }
        Request::Umount { force: true, .. } => match fuse::unmount(&worker.config.mountpoint, true) {
            Ok(()) => {
                log::warn!("{}: detached by force; what is pending is kept", worker.config.mountpoint.display());
                leave_soon();
                Response::Done
            }
            Err(error) => failed(&worker, &error.to_string()),
        },
        Request::Umount { timeout_ms, .. } => {
            let report = |pending| progress.report(pending);
            let drained =
                worker.drain.drain(Duration::from_millis(timeout_ms), report, || progress.is_abandoned()).await;
            match drained {
                Drained::All => unmount(&worker),
                Drained::TimedOut(pending) => Response::TimedOut { pending },
            }
        }
    }
}

fn unmount(worker: &Worker) -> Response {
    match fuse::unmount(&worker.config.mountpoint, false) {
        Ok(()) => Response::Done,
        Err(fuse::MountError::Umount(error)) if error.raw_os_error() == Some(libc::EBUSY) => Response::Busy,
        Err(error) => failed(worker, &error.to_string()),
    }
}

fn failed(worker: &Worker, why: &str) -> Response {
    Response::Failed(Failure {
        what: worker.config.mountpoint.display().to_string(),
        why: why.to_owned(),
        mend: "see its log".to_owned(),
    })
}

fn recover_list(worker: &Worker) -> Response {
    let state_folder = worker.config.state_folder.clone();
    match replay::list_sessions(&state_folder, &worker.drain.busy()) {
        Ok(entries) => Response::RecoverList { state_folder, entries },
        Err(error) => failed(worker, &error.to_string()),
    }
}

/// Ends the process once the answer to the command is out, whoever still uses the mount.
fn leave_soon() {
    tokio::spawn(async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        exit(0);
    });
}

/// SIGTERM and SIGINT are an umount with its drain; a second one goes at once.
async fn unmount_on_signal(worker: Arc<Worker>) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        log::error!("signals cannot be received; use `ossfuse umount`");
        return;
    };
    let mut asked = false;
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        if asked {
            detach_and_leave(&worker);
        }
        asked = true;
        drain_and_unmount(&worker, &tokio::runtime::Handle::current());
    }
}

/// Asked a second time to end.
fn detach_and_leave(worker: &Worker) -> ! {
    let place = worker.config.mountpoint.display();
    log::warn!("{place}: asked again to end: detaching; what is pending is kept");
    if let Err(error) = fuse::unmount(&worker.config.mountpoint, true) {
        log::error!("{error}");
    }
    exit(0);
}

fn drain_and_unmount(worker: &Arc<Worker>, runtime: &tokio::runtime::Handle) {
    log::info!("{}: asked to end: sending what is pending", worker.config.mountpoint.display());
    let worker = worker.clone();
    runtime.spawn(async move {
        worker.drain.finish().await;
        if let Response::Busy = unmount(&worker) {
            let place = worker.config.mountpoint.display();
            log::warn!("{place}: all is sent, but the mount is in use; it stays until `umount`, or a second signal");
        }
    });
}

/// SIGHUP: the credentials are read again, and the log level, where a config file gives it.
async fn reload_on_signal(worker: Arc<Worker>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        reload(&worker);
    }
}

fn reload(worker: &Worker) {
    log::info!("asked to read credentials and log level again");
    worker.keeper.look_again();
    if let Some(level) = worker.config.log.reread_level() {
        crate::logging::set_level(level);
    }
}

/// Spill files and connections need descriptors: takes as many as are allowed.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct lives through both calls.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if !raised {
        log::debug!("the limit of open files stays as it is: {}", io::Error::last_os_error());
    }
}

/// A core file would hold access keys. Of size 1 none is written, and none is piped to a handler (core(5)).
pub fn forbid_core_files() {
    let limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: the struct lives through the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) } != 0 {
        log::debug!("core files cannot be forbidden: {}", io::Error::last_os_error());
    }
}

/// The id under which descriptors on the mount's files show in `fdinfo`.
fn mount_id(mountpoint: &std::path::Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let is_here = |line: &&[u8]| {
        let place = line.split(|b| *b == b' ').nth(4).unwrap_or_default();
        place == escape(mountpoint.as_os_str().as_bytes())
    };
    // The last one lies on top.
    let line = table.split(|b| *b == b'\n').rfind(is_here)?;
    std::str::from_utf8(line.split(|b| *b == b' ').next()?).ok()?.parse().ok()
}

/// A path as mountinfo writes it.
fn escape(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
            byte => out.push(*byte),
        }
    }
    out
}
