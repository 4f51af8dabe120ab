//! Random histories of two files, one process after the other, and another client.
//!
//! The reference keeps what the bucket must hold, byte for byte, and looks after every single step.

use std::collections::BTreeMap;
use std::sync::Arc;

use ossfuse::base::{ETag, crc64};
use ossfuse::oss::CopyOptions;
use ossfuse::replay::{Mode, list_offline};
use ossfuse::spill::{HeaderRecord, Times};
use ossfuse::write::{CONFLICT, DirtyFile, Rekeyed, WriteError};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::process::{PIECE, Process, base_of};
use super::service::Service;
use super::{key, pattern, write_into};

#[derive(Debug, Clone)]
enum Op {
    Create,
    Edit,
    Write { offset: usize, len: usize, seed: u64 },
    Truncate(u64),
    Fsync,
    Mode(u32),
    Publish(Fault),
    Rename,
    Discard,
    Keep,
    OtherClient { len: usize, seed: u64 },
    Read,
    Crash { mode: Recover, with_journal: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recover {
    Safe,
    Publish,
    Keep,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    Lost(&'static str),
    NoSuchUpload(&'static str),
    Busy(&'static str),
}

impl Fault {
    fn rules(self) -> Value {
        let (operation, action) = match self {
            Self::None => return json!([]),
            Self::Lost(operation) => (operation, json!({"reset": "after"})),
            Self::NoSuchUpload(operation) => (operation, json!({"status": 404, "code": "NoSuchUpload"})),
            Self::Busy(operation) => (operation, json!({"status": 503, "code": "ServiceUnavailable"})),
        };
        json!([{"operation": operation, "times": 1, "action": action}])
    }
}

/// A write session, and what the file is.
struct Live {
    file: Arc<DirtyFile>,
    content: Vec<u8>,
    mode: Option<u32>,
    promised: bool,
    /// Whether anything of it was acknowledged that a kill must not take away.
    begun: bool,
}

#[derive(Default)]
struct Slot {
    key: String,
    live: Option<Live>,
    /// Another client changed the object since the session began.
    foreign: bool,
}

/// A session on disk that nobody works on.
struct Dormant {
    key: String,
    content: Vec<u8>,
    mode: Option<u32>,
    promised: bool,
    foreign: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Object {
    content: Vec<u8>,
    mode: Option<u32>,
}

struct World {
    service: Arc<Service>,
    process: Option<Process>,
    prefix: String,
    slots: [Slot; 2],
    bucket: BTreeMap<String, Object>,
    dormant: Vec<Dormant>,
    kept: usize,
    names: u32,
}

impl World {
    fn new(service: Arc<Service>, prefix: String, limit: u64) -> Self {
        let process = Some(Process::start_limited(&service, limit));
        let mut world = Self {
            service,
            process,
            prefix,
            slots: Default::default(),
            bucket: BTreeMap::new(),
            dormant: Vec::new(),
            kept: 0,
            names: 0,
        };
        for at in 0..world.slots.len() {
            world.slots[at].key = world.fresh_name();
        }
        world
    }

    fn fresh_name(&mut self) -> String {
        self.names += 1;
        format!("{}/{}", self.prefix, self.names)
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    fn etag(&self, name: &str) -> Option<ETag> {
        self.service.look(&key(name)).map(|seen| seen.etag)
    }

    fn play(&mut self, at: usize, op: &Op) {
        match op {
            Op::Create => self.create(at),
            Op::Edit => self.edit(at),
            Op::Write { offset, len, seed } => self.write(at, *offset, &pattern(*seed, *len)),
            Op::Truncate(size) => self.truncate(at, *size),
            Op::Fsync => self.with(at, |live| {
                live.file.fsync().unwrap();
                (live.promised, live.begun) = (true, true);
            }),
            Op::Mode(mode) => self.with(at, |live| {
                let mut headers = HeaderRecord::default();
                headers.user_meta.insert("mode".into(), mode.to_string());
                live.file.set_attributes(headers, Times::default()).unwrap();
                live.mode = Some(*mode);
            }),
            Op::Publish(fault) => self.publish(at, *fault),
            Op::Rename => self.rename(at),
            Op::Discard => self.discard(at),
            Op::Keep => self.keep(at, "kept by a test"),
            Op::OtherClient { len, seed } => self.other_client(at, pattern(*seed, *len)),
            Op::Read => self.read(at),
            Op::Crash { mode, with_journal } => self.crash(*mode, *with_journal),
        }
        self.check();
    }

    fn with(&mut self, at: usize, act: impl FnOnce(&mut Live)) {
        if let Some(live) = &mut self.slots[at].live {
            act(live);
        }
    }

    fn begin(&mut self, at: usize, file: Arc<DirtyFile>, content: Vec<u8>) {
        let slot = &mut self.slots[at];
        slot.foreign = false;
        slot.live = Some(Live { file, content, mode: None, promised: false, begun: false });
    }

    fn create(&mut self, at: usize) {
        if self.slots[at].live.is_none() {
            let name = key(&self.slots[at].key);
            let file = self.process().create(&name, self.etag(name.as_str()));
            self.begin(at, file, Vec::new());
        }
    }

    fn edit(&mut self, at: usize) {
        let name = self.slots[at].key.clone();
        let Some(object) = self.bucket.get(&name).cloned() else { return self.create(at) };
        if self.slots[at].live.is_none() {
            let seen = self.service.look(&key(&name)).unwrap();
            let file = self.process().edit(&key(&name), &seen);
            self.begin(at, file, object.content);
        }
    }

    fn write(&mut self, at: usize, offset: usize, data: &[u8]) {
        self.create(at);
        let foreign = self.slots[at].foreign;
        let live = self.slots[at].live.as_mut().unwrap();
        match self.process.as_ref().unwrap().write(&live.file, offset as u64, data) {
            Ok(()) => {
                write_into(&mut live.content, offset, data);
                live.begun |= !data.is_empty();
            }
            Err(WriteError::Stale) => assert!(foreign, "stale by nobody's doing"),
            Err(error) => panic!("{error}"),
        }
    }

    fn truncate(&mut self, at: usize, size: u64) {
        let process = self.process.as_ref().unwrap();
        if let Some(live) = &mut self.slots[at].live {
            process.run(live.file.truncate_waiting(size)).unwrap();
            live.content.resize(size as usize, 0);
            live.begun = true;
        }
    }

    fn publish(&mut self, at: usize, fault: Fault) {
        let Some(live) = &self.slots[at].live else { return };
        self.service.faults(&fault.rules());
        let mut result = self.process().publish(&live.file);
        for _ in 0..3 {
            if matches!(result, Ok(_) | Err(WriteError::Stale)) {
                break;
            }
            self.service.calm();
            result = self.process().publish(&live.file);
        }
        self.service.calm();
        let slot = &mut self.slots[at];
        match result {
            Ok(published) => {
                let live = slot.live.take().unwrap();
                assert_eq!(published.size, live.content.len() as u64);
                let object = Object { content: live.content, mode: live.mode };
                self.bucket.insert(slot.key.clone(), object);
                let etag = self.etag(&self.slots[at].key);
                assert_eq!(etag, Some(published.etag));
            }
            Err(WriteError::Stale) => {
                assert!(slot.foreign, "stale by nobody's doing");
                self.keep(at, CONFLICT);
            }
            Err(error) => panic!("never published: {error}"),
        }
    }

    fn rename(&mut self, at: usize) {
        let new = self.fresh_name();
        let slot = &mut self.slots[at];
        let Some(live) = &slot.live else { return };
        let process = self.process.as_ref().unwrap();
        let old = std::mem::replace(&mut slot.key, new.clone());
        let before = live.file.base().map(|base| base.etag);
        let base = live.file.base().map(|base| {
            let options = CopyOptions { if_match: Some(base.etag.clone()), ..CopyOptions::default() };
            process.run(process.client.copy_object(&base.key, &key(&new), &options)).map(|_| ())
        });
        if base.as_ref().is_some_and(Result::is_err) {
            assert!(slot.foreign);
            slot.key = old;
            return;
        }
        let base = base.map(|_| base_of(&key(&new), &self.service.look(&key(&new)).unwrap()));
        let moved = base.as_ref().zip(before);
        let moved = moved.map(|(base, before)| Rekeyed { before, key: base.key.clone(), after: base.etag.clone() });
        process.run(live.file.rename(key(&new), moved)).unwrap();
        self.service.delete(&key(&old));
        slot.foreign = false;
        let object = self.bucket.remove(&old);
        if let (Some(object), Some(_)) = (object, base) {
            self.bucket.insert(new, object);
        }
    }

    fn discard(&mut self, at: usize) {
        let Some(live) = self.slots[at].live.take() else { return };
        let process = self.process();
        process.run(live.file.unlink(None)).unwrap();
        process.run(live.file.discard()).unwrap();
    }

    fn keep(&mut self, at: usize, reason: &str) {
        let Some(live) = self.slots[at].live.take() else { return };
        self.process().run(live.file.keep(reason)).unwrap();
        self.kept += 1;
    }

    fn other_client(&mut self, at: usize, content: Vec<u8>) {
        let slot = &mut self.slots[at];
        self.service.put(&key(&slot.key), &content);
        slot.foreign |= slot.live.is_some();
        self.bucket.insert(slot.key.clone(), Object { content, mode: None });
    }

    fn read(&self, at: usize) {
        let Some(live) = &self.slots[at].live else { return };
        match self.process().read(&live.file) {
            Ok(bytes) => assert!(bytes == live.content, "read {} of {}", bytes.len(), live.content.len()),
            Err(error) => assert!(self.slots[at].foreign, "{error}"),
        }
    }

    fn crash(&mut self, recover: Recover, with_journal: bool) {
        for at in 0..self.slots.len() {
            let name = self.fresh_name();
            let slot = &mut self.slots[at];
            let Some(live) = slot.live.take() else { continue };
            let is_on_disk = self.process.as_ref().unwrap().layout().spill().join(live.file.id().to_string()).exists();
            assert!(is_on_disk || !live.begun, "a kill would lose an acknowledged change");
            let key = std::mem::replace(&mut slot.key, name);
            if is_on_disk {
                let Live { content, mode, promised, .. } = live;
                self.dormant.push(Dormant { key, content, mode, promised, foreign: slot.foreign });
            }
        }
        let process = self.process.take().unwrap().crash(&self.service, with_journal);
        self.process = Some(process);
        let mode = match recover {
            Recover::Safe => Mode::Safe,
            Recover::Publish => Mode::Publish,
            Recover::Keep => Mode::Keep,
        };
        self.process().replay(mode);
        for session in std::mem::take(&mut self.dormant) {
            let is_due = recover == Recover::Publish || (recover == Recover::Safe && session.promised);
            if is_due { self.settle(session) } else { self.dormant.push(session) }
        }
    }

    /// A session that the replay had to end: at its name, or beside what another client put there.
    fn settle(&mut self, session: Dormant) {
        let object = Object { content: session.content, mode: session.mode };
        if !session.foreign {
            self.bucket.insert(session.key, object);
            return;
        }
        let beside = self.service.objects(&format!("{}.conflict-", session.key));
        assert!(beside.len() <= 1);
        match beside.into_keys().next() {
            Some(name) => drop(self.bucket.insert(name, object)),
            None => self.kept += 1,
        }
    }

    /// The bucket is what the reference says, and so is the number of sessions that wait for somebody.
    fn check(&self) {
        let seen = self.service.objects(&format!("{}/", self.prefix));
        let keys: Vec<_> = seen.keys().collect();
        assert_eq!(keys, self.bucket.keys().collect::<Vec<_>>());
        for (name, object) in &self.bucket {
            let seen = &seen[name];
            let sum = crc64::checksum(&object.content);
            assert_eq!((seen.size, seen.crc64), (object.content.len() as u64, Some(sum)), "{name}");
            let mode = object.mode.map(|mode| mode.to_string());
            assert_eq!(seen.meta.get("mode"), mode.as_ref(), "{name}");
        }
        let left = list_offline(self.process().layout().root()).unwrap().len();
        let live = self.slots.iter().filter_map(|slot| slot.live.as_ref());
        let begun = live.filter(|live| live.begun).count();
        assert!(left >= self.kept + self.dormant.len() + begun, "{left} sessions left");
    }
}

fn offsets() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), Just(100 << 10), Just(200 << 10), 0..450usize << 10]
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![1..2000usize, Just(100 << 10), Just(200 << 10), 1..250usize << 10]
}

fn sizes() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(100 << 10), Just(200 << 10), 0..500u64 << 10]
}

fn fault_of() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => Just(Fault::None),
        2 => prop::sample::select(vec!["UploadPart", "CompleteMultipartUpload", "PutObject", "UploadPartCopy"]).prop_map(Fault::Lost),
        1 => prop::sample::select(vec!["UploadPart", "CompleteMultipartUpload", "UploadPartCopy", "ListParts"]).prop_map(Fault::NoSuchUpload),
        1 => prop::sample::select(vec!["UploadPart", "PutObject", "GetObject", "InitiateMultipartUpload"]).prop_map(Fault::Busy),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let recover = prop::sample::select(vec![Recover::Safe, Recover::Safe, Recover::Publish, Recover::Keep]);
    prop_oneof![
        1 => Just(Op::Create),
        4 => Just(Op::Edit),
        10 => (offsets(), lengths(), 1..1000u64).prop_map(|(offset, len, seed)| Op::Write { offset, len, seed }),
        4 => sizes().prop_map(Op::Truncate),
        2 => Just(Op::Fsync),
        1 => prop::sample::select(vec![33188u32, 33261]).prop_map(Op::Mode),
        5 => fault_of().prop_map(Op::Publish),
        1 => Just(Op::Rename),
        1 => Just(Op::Discard),
        1 => Just(Op::Keep),
        1 => (lengths(), 1000..2000u64).prop_map(|(len, seed)| Op::OtherClient { len, seed }),
        2 => Just(Op::Read),
        3 => (recover, any::<bool>()).prop_map(|(mode, with_journal)| Op::Crash { mode, with_journal }),
    ]
}

fn play(service: &Arc<Service>, limit: u64, ops: &[(usize, Op)]) {
    static CASES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let case = CASES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut world = World::new(service.clone(), format!("case-{case}"), limit);
    for (at, op) in ops {
        world.play(*at, op);
    }
    for at in 0..world.slots.len() {
        world.play(at, &Op::Read);
        world.play(at, &Op::Publish(Fault::None));
    }
    world.play(0, &Op::Crash { mode: Recover::Publish, with_journal: true });
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48)
}

#[test]
fn random_histories_end_as_the_reference_says() {
    let service = Service::start();
    let config =
        ProptestConfig { cases: cases(), failure_persistence: None, max_shrink_iters: 300, ..Default::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let limits = prop_oneof![2 => Just(u64::MAX), 1 => Just(4 * PIECE)];
    let histories = prop::collection::vec((0..2usize, op()), 4..24);
    let result = runner.run(&(limits, histories), |(limit, ops)| {
        play(&service, limit, &ops);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
