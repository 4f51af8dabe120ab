//! Every crash point under every kind of change: the mount dies there, the next one takes up what it left, and the
//! bucket holds what was promised, nothing half, nothing left over.
//!
//! First each kind is done once while the points that it passes are noted; then it is done once for each of them. The
//! replay is killed too, at one of the points that replays pass, and run again. `OSSFUSE_ENUMERATED_LONG=1` (or
//! `scripts/crash-points`) kills at every passing of a point, not only at the first, and after each the replay at all
//! of the points that it then passes; with `OSSFUSE_ENUMERATED_SHARE=N/M` the N-th of M shares of that.

mod kinds;
mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use ossfuse::base::crash;

use super::harness::Bench;
use kinds::{KINDS, Kind, Site};
use rig::{End, Process, Rig};

/// Benches that work side by side.
const THREADS: usize = 4;
const MODES: [&[&str]; 2] = [&[], &["--close", "local"]];
const OPTIONS: &[&str] =
    &["--part-size", "100KiB", "--upload-workers", "4", "--recover", "safe", "--log-level", "debug"];

/// Passings of one point by one kind that are killed in the long form.
const PASSINGS_MAX: usize = 8;
/// Workers that die at one point in the short form, under kinds this far apart.
const WORKERS_OF_A_POINT: usize = 2;
const KIND_STEP: usize = 5;

/// One thing to be tried: a kind in a mode, killed at a passing of a point; and a point of the replay that follows.
#[derive(Debug, Clone, Copy)]
struct Case {
    kind: usize,
    mode: usize,
    point: &'static str,
    passing: usize,
    again: Option<&'static str>,
}

impl Case {
    /// The same, the replay killed at each of these points.
    fn agains(&self, points: &BTreeSet<String>) -> Vec<Self> {
        let points = crash::ALL.iter().filter(|point| points.contains(**point));
        points.map(|point| Self { again: Some(point), ..*self }).collect()
    }

    fn name(&self) -> String {
        let again = self.again.filter(|again| *again != TRACE).map_or(String::new(), |again| format!(", then {again}"));
        let mode = MODES[self.mode].join(" ");
        format!("{} {mode} killed at {} ({}){again}", KINDS[self.kind].name, self.point, self.passing)
    }
}

fn rig<'b>(bench: &'b Bench, kind: &Kind, mode: usize) -> Rig<'b> {
    let options = [OPTIONS, kind.options, MODES[mode]].concat();
    Rig::new(bench, options.iter().map(|option| (*option).to_owned()).collect(), &(kind.states)()[0])
}

fn is_long() -> bool {
    std::env::var("OSSFUSE_ENUMERATED_LONG").is_ok_and(|value| value == "1")
}

/// The cases of the share that is asked for: N of M, from `N/M`.
fn share(cases: Vec<Case>) -> Vec<Case> {
    let Ok(text) = std::env::var("OSSFUSE_ENUMERATED_SHARE") else { return cases };
    let (n, of) = text.split_once('/').expect("a share is N/M");
    let (n, of): (usize, usize) = (n.parse().unwrap(), of.parse().unwrap());
    cases.into_iter().skip(n - 1).step_by(of).collect()
}

/// Runs jobs on some benches side by side; what fails is told at the end, all of it.
fn side_by_side<J: Sync, R: Send>(jobs: &[J], run: impl Fn(&Bench, &J) -> Result<R, String> + Sync) -> Option<Vec<R>> {
    let (done, failed) = tried(jobs, run)?;
    assert!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), jobs.len(), failed.join("\n\n"));
    Some(done)
}

/// What came of jobs, and what is wrong with those that failed.
fn tried<J: Sync, R: Send>(
    jobs: &[J],
    run: impl Fn(&Bench, &J) -> Result<R, String> + Sync,
) -> Option<(Vec<R>, Vec<String>)> {
    let (next, done, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let skipped = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let Some(bench) = Bench::new() else {
                    skipped.fetch_add(1, Ordering::Relaxed);
                    return;
                };
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match run(&bench, job) {
                        Ok(result) => done.lock().unwrap().push(result),
                        Err(why) => {
                            if is_long() {
                                println!("{why}\n");
                            }
                            failed.lock().unwrap().push(why);
                        }
                    }
                }
            });
        }
    });
    if skipped.into_inner() > 0 {
        return None;
    }
    Some((done.into_inner().unwrap(), failed.into_inner().unwrap()))
}

/// The points that a kind passes in a mode, with how often.
fn passed(bench: &Bench, kind: &Kind, mode: usize) -> Result<BTreeMap<String, usize>, String> {
    let states = (kind.states)();
    let rig = rig(bench, kind, mode);
    let mut process = rig.start().expect("nobody dies");
    rig.arm("trace");
    let site = Site::new(rig.path());
    (kind.work)(&site).map_err(|error| format!("{}: {error}\n{}", kind.name, rig.told()))?;
    if !process.sync() {
        return Err(format!("{}: no sync\n{}", kind.name, rig.told()));
    }
    let last = states.last().expect("the last state");
    let end = process.settle(|_| rig.holds(last) && rig.uploads().is_empty() && rig.leftovers().is_empty());
    rig.disarm();
    if end != Some(End::Alive) || site.promised() != states.len() - 1 {
        return Err(format!("{}: {end:?}, {}, {:?}\n{}", kind.name, rig.shown(), rig.uploads(), rig.told()));
    }
    let mut counts = BTreeMap::new();
    rig.passed().into_iter().for_each(|name| *counts.entry(name).or_default() += 1);
    process.kill();
    Ok(counts)
}

/// What came of a case.
#[derive(Debug, Clone, Default)]
struct Killed {
    /// Whether the point was met, and the one in the replay.
    met: bool,
    met_again: bool,
    /// What the replay passed, where that is asked for.
    passed: BTreeSet<String>,
}

/// In the place of a point of the replay: nobody dies there, it is noted what the replay passes.
const TRACE: &str = "trace";

fn killed(bench: &Bench, case: &Case) -> Result<Killed, String> {
    let kind = &KINDS[case.kind];
    let rig = rig(bench, kind, case.mode);
    let site = Site::new(rig.path());
    let process = rig.start().expect("nobody dies yet");
    rig.arm(&format!("{} {}", case.point, case.passing));
    let done = (kind.work)(&site);
    // Whatever was not answered is cut off by the death.
    let synced = done.is_ok() && process.sync();
    let mut process = process;
    if !rig.is_armed() {
        process.settle(|_| false);
    } else if done.is_ok() {
        process.settle(|_| true);
    }
    let met = !rig.is_armed();
    rig.disarm();
    process.kill();
    let check = Check { case, kind, rig: &rig, site: &site, synced };
    if !met && done.is_err() {
        return check.fail(&format!("failed and was not killed: {:?}", done.err()));
    }
    let mut met_again = false;
    if let Some(again) = case.again {
        rig.arm(again);
        let second = rig.start();
        let end = second.map(|mut process| (process.settle(|process| check.is_settled(process)), process));
        met_again = !rig.is_armed();
        rig.disarm();
        match end {
            Some((None, _)) => return check.fail("the second mount does not settle"),
            Some((Some(End::Alive), process)) => {
                check.hold()?;
                process.kill();
                return Ok(Killed { met, met_again, passed: rig.passed().into_iter().collect() });
            }
            Some((Some(End::Died), process)) => process.kill(),
            None => {}
        }
    }
    let mut process = rig.start().expect("nobody dies any more");
    if process.settle(|process| check.is_settled(process)) != Some(End::Alive) {
        return check.unsettled(&process);
    }
    check.hold()?;
    process.kill();
    Ok(Killed { met, met_again, ..Killed::default() })
}

/// What must hold of a case once all is settled.
struct Check<'c> {
    case: &'c Case,
    kind: &'c Kind,
    rig: &'c Rig<'c>,
    site: &'c Site,
    synced: bool,
}

impl Check<'_> {
    /// The states that may be found: from what was promised on.
    fn allowed(&self) -> Vec<rig::State> {
        let states = (self.kind.states)();
        let first = if self.synced { states.len() - 1 } else { self.site.promised() };
        states.into_iter().skip(first).collect()
    }

    fn is_settled(&self, process: &Process<'_, '_>) -> bool {
        self.allowed().iter().any(|state| self.rig.holds(state))
            && self.rig.leftovers().is_empty()
            && self.uploads_are_known(process)
    }

    /// Uploads of kept sessions stand. One whose id nobody lived to note does too, until somebody aborts it: it has no
    /// parts.
    fn uploads_are_known(&self, process: &Process<'_, '_>) -> bool {
        let Some(owned) = process.owned_uploads() else { return false };
        let unknown: Vec<_> = self.rig.uploads().into_iter().filter(|(_, id, _)| !owned.contains(id)).collect();
        unknown.iter().all(|(.., parts)| *parts == 0) && unknown.len() <= 1 + usize::from(self.case.again.is_some())
    }

    fn hold(&self) -> Result<(), String> {
        let states = (self.kind.states)();
        let kept = self.rig.kept();
        let found = states.iter().rposition(|state| self.rig.holds(state));
        let first = self.site.promised();
        if found == Some(first) && first + 1 < states.len() && self.site.written() > 0 && kept.is_empty() {
            return self.fail("what was written is neither published nor kept");
        }
        let is_new = states.last() != states.get(first);
        if found.is_some_and(|found| found + 1 == states.len()) && is_new && !kept.is_empty() {
            return self.fail(&format!("kept, and published as well: {kept:?}"));
        }
        Ok(())
    }

    fn unsettled<T>(&self, process: &Process<'_, '_>) -> Result<T, String> {
        let status = process.status().map(|status| (status.pending, status.open_handles, status.uploads));
        self.fail(&format!("the mount does not settle: {status:?}"))
    }

    fn fail<T>(&self, why: &str) -> Result<T, String> {
        let (rig, site) = (self.rig, self.site);
        Err(format!(
            "=== {}: {why}; promised {}, written {}, synced {}; bucket: {}; uploads {:?}; left {:?}; kept {:?}\n{}",
            self.case.name(),
            site.promised(),
            site.written(),
            self.synced,
            rig.shown(),
            rig.uploads(),
            rig.leftovers(),
            rig.kept(),
            rig.told()
        ))
    }
}

/// A kind in a mode, and how often it passes which points.
#[derive(Debug)]
struct Traced {
    kind: usize,
    mode: usize,
    counts: BTreeMap<String, usize>,
}

impl Traced {
    /// What is tried of it: in the short form it is killed at the first passing of each point, and the replay after that
    /// at one of them, each in its turn.
    fn cases(&self) -> Vec<Case> {
        let only = KINDS[self.kind].only;
        let is_replayed = |point: &&&str| self.counts.contains_key(**point) || point.starts_with("replay");
        let replayed: Vec<&'static str> = crash::ALL.iter().filter(is_replayed).copied().collect();
        // Each kind begins elsewhere, so that together they come to all of them.
        let mut agains = replayed.iter().copied().cycle().skip((2 * self.kind + self.mode) * TURN);
        let mut cases = Vec::new();
        for point in crash::ALL.iter().filter(|point| only.is_empty() || only.contains(point)) {
            let times = self.counts.get(*point).copied().unwrap_or_default();
            for passing in 0..times.min(if is_long() { PASSINGS_MAX } else { 1 }) {
                let case = |again| Case { kind: self.kind, mode: self.mode, point, passing, again };
                if is_long() {
                    cases.push(case(Some(TRACE)));
                } else if self.mode == 0 && DECIDED.contains(point) {
                    cases.extend(
                        replayed
                            .iter()
                            .copied()
                            .filter(|again| again.starts_with("replay"))
                            .map(|again| case(Some(again))),
                    );
                } else {
                    cases.push(case(agains.next()));
                }
            }
        }
        cases
    }
}

/// How far apart two kinds begin in the list of points at which the replay is killed.
const TURN: usize = 7;
/// Where a death leaves a replay something to decide: in the short form it is killed at each of its own points there.
const DECIDED: [&str; 2] = ["closing-recorded", "published"];

/// Each kind in each mode, with the points that it passes; found out once for all tests. `None` without FUSE.
fn traced() -> Option<&'static [Traced]> {
    static TRACED: OnceLock<Option<Vec<Traced>>> = OnceLock::new();
    let trace = || {
        let kinds: Vec<(usize, usize)> = (0..KINDS.len()).flat_map(|kind| [(kind, 0), (kind, 1)]).collect();
        let mut traced = side_by_side(&kinds, |bench, (kind, mode)| {
            Ok(Traced { kind: *kind, mode: *mode, counts: passed(bench, &KINDS[*kind], *mode)? })
        })?;
        traced.sort_by_key(|traced| (traced.kind, traced.mode));
        Some(traced)
    };
    TRACED.get_or_init(trace).as_deref()
}

#[test]
fn what_was_promised_holds_wherever_the_mount_dies() {
    let Some(traced) = traced() else { return };
    let cases = share(traced.iter().flat_map(|traced| traced.cases()).collect());
    let try_all = |cases: &[Case]| tried(cases, |bench, case| Ok((*case, killed(bench, case)?)));
    let (mut done, mut failed) = try_all(&cases).expect("FUSE was there");
    // In the long form it is known by now what each replay passes.
    let agains: Vec<Case> = done.iter().flat_map(|(case, killed)| case.agains(&killed.passed)).collect();
    println!("{} cases, and {} with a replay that is killed where it was seen to pass", cases.len(), agains.len());
    let (more, wrong) = try_all(&agains).expect("FUSE was there");
    done.extend(more);
    failed.extend(wrong);
    let met: BTreeSet<&str> = done.iter().filter(|(_, killed)| killed.met).map(|(case, _)| case.point).collect();
    let kills = done.iter().filter(|(_, killed)| killed.met).count();
    let again: BTreeSet<&str> =
        done.iter().filter(|(_, killed)| killed.met_again).filter_map(|(case, _)| case.again).collect();
    let replays = done.iter().filter(|(_, killed)| killed.met_again).count();
    println!(
        "{} kinds in {} modes: {kills} kills at {} points, {replays} replays killed again at {} points",
        KINDS.len(),
        MODES.len(),
        met.len(),
        again.len()
    );
    assert!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), cases.len() + agains.len(), failed.join("\n\n"));
    // What is published beside another client's object has a test of its own, and so has what happens some time after a
    // part was sent, when the file may be closed already.
    let is_missing = |point: &&str| {
        !["replay-beside", "part-stable"].contains(point) && !met.contains(point) && !again.contains(point)
    };
    let missing: Vec<&str> = crash::ALL.iter().copied().filter(is_missing).collect();
    let is_whole = std::env::var_os("OSSFUSE_ENUMERATED_SHARE").is_none();
    assert!(missing.is_empty() || !is_whole, "met by no kind: {missing:?}");
}

/// The worker dies, its supervisor starts another one, and the work goes on as if nothing had been.
fn unnoticed(bench: &Bench, case: &Case) -> Result<bool, String> {
    let kind = &KINDS[case.kind];
    let rig = rig(bench, kind, case.mode).supervised();
    let site = Site::new(rig.path());
    let mut process = rig.start().expect("it has a supervisor");
    rig.arm(&format!("{} {}", case.point, case.passing));
    let done = (kind.work)(&site);
    let synced = done.is_ok() && process.sync();
    let check = Check { case, kind, rig: &rig, site: &site, synced };
    if let Err(error) = done {
        return check.fail(&format!("it was noticed: {error}"));
    }
    let states = (kind.states)();
    if site.promised() + 1 != states.len() {
        return check.fail("not all was acknowledged");
    }
    let is_done = |process: &Process<'_, '_>| {
        rig.holds(&states[states.len() - 1]) && rig.leftovers().is_empty() && check.uploads_are_known(process)
    };
    if process.settle(is_done) != Some(End::Alive) {
        return check.unsettled(&process);
    }
    if !rig.kept().is_empty() {
        return check.fail("something was kept");
    }
    let met = !rig.is_armed();
    rig.disarm();
    process.kill();
    Ok(met)
}

#[test]
fn nobody_notices_wherever_a_worker_dies() {
    let Some(traced) = traced() else { return };
    let all: Vec<Case> = traced.iter().flat_map(|traced| traced.cases()).collect();
    let mut cases: Vec<Case> = Vec::new();
    for point in crash::ALL {
        // Other kinds for each point, so that all have their turn.
        let of_point: Vec<Case> =
            all.iter().filter(|case| case.point == *point && case.passing == 0).copied().collect();
        let most = if is_long() { of_point.len() } else { of_point.len().min(WORKERS_OF_A_POINT) };
        let first = cases.len() % of_point.len().max(1);
        cases.extend(of_point.iter().cycle().skip(first).step_by(KIND_STEP).take(most));
    }
    let cases = share(cases);
    let done = side_by_side(&cases, unnoticed).expect("FUSE was there");
    println!("{} workers died unnoticed, of {} that were to", done.iter().filter(|met| **met).count(), cases.len());
}

/// Another client comes between the completion and the replay: its object stays, and so do our bytes.
///
/// Tells whether a replay died as it published ours beside it.
fn overtaken(bench: &Bench, case: &Case) -> Result<bool, String> {
    let kind = &KINDS[case.kind];
    let rig = rig(bench, kind, case.mode);
    let site = Site::new(rig.path());
    let mut process = rig.start().expect("nobody dies yet");
    rig.arm(case.point);
    let done = (kind.work)(&site);
    if done.is_ok() {
        process.sync();
    }
    process.settle(|_| rig.is_armed());
    process.kill();
    let check = Check { case, kind, rig: &rig, site: &site, synced: false };
    if rig.is_armed() {
        return check.fail("the point was not met");
    }
    rig.put("f", b"theirs");
    // What goes beside it must not go there twice.
    rig.arm("replay-beside");
    if let Some(mut process) = rig.start() {
        process.settle(|process| rig.leftovers().is_empty() && check.uploads_are_known(process));
        process.kill();
    }
    let died = !rig.is_armed();
    rig.disarm();
    let mut process = rig.start().expect("nobody dies any more");
    if process.settle(|process| rig.leftovers().is_empty() && check.uploads_are_known(process)) != Some(End::Alive) {
        return check.fail("the mount does not settle");
    }
    process.kill();
    let ours = (kind.states)().pop().and_then(|mut state| state.remove("f")).expect("the file");
    let keys = rig.all_keys();
    let beside: Vec<&String> = keys.iter().filter(|key| key.starts_with("f.conflict-")).collect();
    if beside.len() > 1 {
        return check.fail("it went beside it twice");
    }
    let has_ours = beside.first().and_then(|key| rig.get(key)).is_some_and(|bytes| ours.has(&bytes));
    if rig.get("f").as_deref() != Some(b"theirs") {
        return check.fail("another client's object was replaced");
    }
    // Once the session's end is noted, replacing what it became is what the other client meant.
    let is_over = rig.kept().is_empty() && beside.is_empty() && ["done-noted", "session-ended"].contains(&case.point);
    if has_ours || !rig.kept().is_empty() || is_over { Ok(died) } else { check.fail("our bytes are gone") }
}

#[test]
fn another_client_that_comes_before_the_replay_is_not_replaced() {
    let small = ["put-answered", "published", "retiring", "session-ended", "done-noted"];
    let large = ["complete-answered", "published", "retiring", "session-ended", "done-noted"];
    let mut cases = Vec::new();
    for (kind, of) in KINDS.iter().enumerate() {
        let points = match of.name {
            "a new small file" | "an append to a small file" => small,
            "a new large file" | "an overwrite of a small file by a large one" | "edits of a large file" => large,
            _ => continue,
        };
        cases.extend(points.map(|point| Case { kind, mode: 0, point, passing: 0, again: None }));
        cases.extend(points.map(|point| Case { kind, mode: 1, point, passing: 0, again: None }));
    }
    let Some(died) = side_by_side(&cases, overtaken) else { return };
    let deaths = died.iter().filter(|died| **died).count();
    println!("overtaken {} times, {deaths} replays killed", died.len());
    assert!(deaths > 0);
}
