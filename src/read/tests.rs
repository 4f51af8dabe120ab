//! The engine against a service that counts and misbehaves.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::service_double::{Act, Seen, ServiceDouble, wait_until};
use super::window::split;
use super::{Cursor, Opened, ReadEngine, ReadError, ReadOptions, Reader};
use crate::base::limits::{GIB, KIB, MIB};
use crate::base::{Budget, ByteRange, ETag, ObjectKey};
use crate::oss::{
    Addressing, Client, ClientOptions, Credentials, Endpoint, ErrorKind, Limits, ObjectMeta, SignatureVersion,
};

struct Bench {
    service: Arc<ServiceDouble>,
    engine: ReadEngine,
    memory: Arc<Budget>,
    size: u64,
}

fn key() -> ObjectKey {
    ObjectKey::parse("dir/file").unwrap()
}

fn client(port: u16) -> Client {
    Client::new(ClientOptions {
        endpoint: Endpoint { https: false, host: "127.0.0.1".into(), port: Some(port) },
        bucket: "bucket".into(),
        region: Some("cn-hangzhou".into()),
        addressing: Addressing::Path,
        signature: SignatureVersion::V4,
        credentials: Credentials {
            access_key_id: "id".into(),
            access_key_secret: "secret".into(),
            security_token: None,
        },
        try_timeout: Duration::from_secs(20),
        outage_timeout: Duration::ZERO,
        limits: Limits::default(),
    })
    .unwrap()
}

impl Bench {
    async fn new(size: u64) -> Self {
        Self::with_memory(size, 128 * MIB).await
    }

    async fn with_memory(size: u64, memory: u64) -> Self {
        Self::with_options(size, ReadOptions::new(Budget::new(memory))).await
    }

    async fn with_options(size: u64, options: ReadOptions) -> Self {
        let service = ServiceDouble::start(size).await;
        let memory = Arc::clone(&options.memory);
        let engine = ReadEngine::new(client(service.port), options, Handle::current());
        Self { service, engine, memory, size }
    }

    async fn opened(&self) -> (ObjectMeta, Arc<Reader>) {
        match self.engine.open(&key(), None).await.unwrap() {
            Opened::Current { meta, reader } => (meta, reader),
            Opened::Unchanged => panic!("nothing was held"),
        }
    }

    async fn open(&self) -> Arc<Reader> {
        self.opened().await.1
    }

    fn whole(&self) -> ByteRange {
        ByteRange::new(0, self.size)
    }

    fn gets(&self) -> Vec<Seen> {
        self.service.seen().into_iter().filter(|seen| seen.method == "GET").collect()
    }

    fn sent(&self) -> u64 {
        self.gets().iter().map(|get| get.sent).sum()
    }

    fn check(&self, range: ByteRange, bytes: &Bytes) {
        assert!(self.service.content(range.intersect(&self.whole())) == *bytes, "wrong bytes for {range:?}");
    }

    /// Reads `range` in requests of `len` bytes, one after the other.
    async fn read(&self, reader: &Reader, cursor: &Cursor, range: ByteRange, len: u64) -> Result<(), ReadError> {
        for part in split(range, len) {
            self.check(part, &reader.read(cursor, part).await?);
            let held = self.engine.held();
            assert!(held <= self.memory.total() + 8 * MIB, "{held} bytes are held");
        }
        Ok(())
    }
}

fn multi<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test)
}

#[test]
fn a_gibibyte_front_to_back_takes_129_gets_of_every_byte_once() {
    multi(async {
        let bench = Bench::new(GIB).await;
        let reader = bench.open().await;
        let cursor = Cursor::default();
        bench.read(&reader, &cursor, bench.whole(), 128 * KIB).await.unwrap();
        assert_eq!(bench.gets().len(), 129);
        assert_eq!(bench.sent(), GIB);
    });
}

#[test]
fn requests_in_flight_and_out_of_order_fetch_every_byte_once() {
    multi(async {
        let bench = Bench::new(64 * MIB + 12_345).await;
        let reader = bench.open().await;
        let cursor = Cursor::default();
        let parts: Vec<_> = split(bench.whole(), 256 * KIB).collect();
        for group in parts.chunks(4) {
            let reads = group.iter().rev().map(|part| reader.read(&cursor, *part));
            for (part, bytes) in group.iter().rev().zip(join_all(reads).await) {
                bench.check(*part, &bytes.unwrap());
            }
        }
        assert_eq!(bench.sent(), bench.size);
        assert!(bench.gets().len() <= 10, "{:?}", bench.gets());
    });
}

#[test]
fn opening_and_reading_a_small_file_is_one_get() {
    multi(async {
        for size in [1, 100 * KIB, MIB] {
            let bench = Bench::new(size).await;
            let (meta, reader) = bench.opened().await;
            assert_eq!((meta.size, reader.size(), reader.etag()), (size, size, ETag::new("v1")));
            let cursor = Cursor::default();
            bench.read(&reader, &cursor, bench.whole(), 128 * KIB).await.unwrap();
            let beyond = reader.read(&cursor, ByteRange::at(size, 4096)).await.unwrap();
            assert!(beyond.is_empty());
            let across = ByteRange::at(size - 1, 4096);
            bench.check(across, &reader.read(&cursor, across).await.unwrap());
            assert_eq!(bench.service.seen().len(), 1);
        }
    });
}

#[test]
fn a_reader_of_a_known_object_makes_no_request_until_it_reads() {
    multi(async {
        let bench = Bench::new(700 * KIB).await;
        let (meta, _) = bench.opened().await;
        let reader = bench.engine.reader(key(), &meta);
        assert_eq!(bench.service.seen().len(), 1);
        bench.read(&reader, &Cursor::default(), bench.whole(), 128 * KIB).await.unwrap();
        assert_eq!(bench.service.seen().len(), 2);
    });
}

#[test]
fn an_empty_object_is_never_fetched() {
    multi(async {
        let bench = Bench::new(0).await;
        let (meta, reader) = bench.opened().await;
        assert!(reader.read(&Cursor::default(), ByteRange::at(0, 4096)).await.unwrap().is_empty());
        let methods: Vec<_> = bench.service.seen().into_iter().map(|seen| (seen.method, seen.status)).collect();
        assert_eq!(methods, [("GET".into(), 416), ("HEAD".into(), 200)]);
        assert!(matches!(bench.engine.open(&key(), Some(&meta.etag)).await.unwrap(), Opened::Unchanged));
    });
}

#[test]
fn an_unchanged_object_is_one_request_without_data() {
    multi(async {
        let bench = Bench::new(MIB).await;
        let opened = bench.engine.open(&key(), Some(&ETag::new("V1"))).await.unwrap();
        assert!(matches!(opened, Opened::Unchanged));
        let seen = bench.service.seen();
        assert_eq!((seen.len(), seen[0].status, seen[0].sent), (1, 304, 0));
        let opened = bench.engine.open(&key(), Some(&ETag::new("V0"))).await.unwrap();
        assert!(matches!(opened, Opened::Current { .. }));
    });
}

#[test]
fn an_object_that_is_not_there_cannot_be_opened() {
    multi(async {
        let bench = Bench::new(MIB).await;
        *bench.service.object.lock() = None;
        assert_eq!(bench.engine.open(&key(), None).await.unwrap_err().kind, ErrorKind::NoSuchKey);
    });
}

#[test]
fn handles_of_one_file_share_its_fetches() {
    multi(async {
        let bench = Bench::new(32 * MIB).await;
        let reader = bench.open().await;
        let cursors: Vec<_> = std::iter::repeat_with(Cursor::default).take(4).collect();
        for part in split(bench.whole(), 512 * KIB) {
            for bytes in join_all(cursors.iter().map(|cursor| reader.read(cursor, part))).await {
                bench.check(part, &bytes.unwrap());
            }
        }
        assert_eq!(bench.sent(), bench.size);
        assert_eq!(bench.gets().len(), 5);
    });
}

#[test]
fn a_broken_body_is_resumed_at_the_next_byte() {
    multi(async {
        let bench = Bench::new(20 * MIB).await;
        bench.service.plan(|get, _| if get % 3 == 1 { Act::Break(300 * KIB + 17) } else { Act::Serve });
        let reader = bench.open().await;
        bench.read(&reader, &Cursor::default(), bench.whole(), 128 * KIB).await.unwrap();
        let mut ranges: Vec<_> =
            bench.gets().iter().map(|get| ByteRange::at(get.range.unwrap().start, get.sent)).collect();
        ranges.sort();
        assert!(ranges.len() > 4);
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start), "{ranges:?}");
    });
}

#[test]
fn a_body_that_always_breaks_off_is_given_up() {
    multi(async {
        let bench = Bench::new(MIB).await;
        bench.service.plan(|_, _| Act::Break(1000));
        let reader = bench.open().await;
        let cursor = Cursor::default();
        let error = reader.read(&cursor, bench.whole()).await.unwrap_err();
        assert!(matches!(error, ReadError::Oss(error) if error.kind == ErrorKind::Transport));
        let before = bench.gets().len();
        assert!(before <= 10, "{before}");
        bench.service.plan(|_, _| Act::Serve);
        bench.read(&reader, &cursor, bench.whole(), MIB).await.unwrap();
        let resumed = bench.gets()[before].range.unwrap().start;
        assert!(resumed > 1000, "what was received is kept");
    });
}

#[test]
fn a_replaced_or_deleted_object_is_stale() {
    multi(async {
        let bench = Bench::new(GIB).await;
        let reader = bench.open().await;
        let cursor = Cursor::default();
        bench.read(&reader, &cursor, ByteRange::new(0, 128 * KIB), 128 * KIB).await.unwrap();
        bench.service.object.lock().as_mut().unwrap().etag = "V2".into();
        let far = ByteRange::at(500 * MIB, 4096);
        assert!(matches!(reader.read(&cursor, far).await, Err(ReadError::Stale)));
        *bench.service.object.lock() = None;
        assert!(matches!(reader.fetch_exact(far).await, Err(ReadError::Stale)));
        // What is here already is still of the one version.
        bench.read(&reader, &cursor, ByteRange::new(128 * KIB, MIB), 128 * KIB).await.unwrap();
    });
}

#[test]
fn a_reader_follows_what_the_program_itself_did() {
    multi(async {
        let bench = Bench::new(GIB).await;
        let reader = bench.open().await;
        bench.service.object.lock().as_mut().unwrap().etag = "V2".into();
        let moved = ObjectKey::parse("moved").unwrap();
        reader.rekey(moved, ETag::new("V2"));
        bench.read(&reader, &Cursor::default(), ByteRange::at(500 * MIB, 4096), 4096).await.unwrap();
        assert_eq!(reader.etag(), ETag::new("V2"));
        assert_eq!(bench.gets().last().unwrap().path, "/bucket/moved");
    });
}

#[test]
fn a_request_that_our_own_rename_overtook_is_repeated() {
    multi(async {
        let bench = Bench::new(GIB).await;
        let reader = bench.open().await;
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        bench.service.plan(move |get, _| if get == 1 { Act::Delay(Arc::clone(&held)) } else { Act::Serve });
        let cursor = Cursor::default();
        let part = ByteRange::at(500 * MIB, 4096);
        let rename = async {
            wait_until("the request is under way", || bench.service.gets() == 2).await;
            bench.service.object.lock().as_mut().unwrap().etag = "V2".into();
            reader.rekey(key(), ETag::new("V2"));
            gate.add_permits(1);
        };
        let (bytes, ()) = tokio::join!(reader.read(&cursor, part), rename);
        bench.check(part, &bytes.unwrap());
        assert_eq!(bench.gets().iter().map(|get| get.status).collect::<Vec<_>>(), [206, 412, 206]);
    });
}

/// Reads at random places, onwards and back, all at once, on little memory and over a bad line.
#[test]
fn whatever_is_read_in_whatever_order_the_bytes_are_right() {
    multi(async {
        let memory = Budget::new(5 * MIB);
        let options = ReadOptions { workers: 5, chunk: MIB, first: 256 * KIB, memory };
        let bench = Bench::with_options(16 * MIB + 4321, options).await;
        bench.service.plan(|get, range| if get % 7 == 3 { Act::Break(range.len() / 3 + 1) } else { Act::Serve });
        let readers = [bench.open().await, bench.open().await, bench.open().await];
        let handles = (0..12u64).map(|seed| wander(&bench, &readers[seed as usize % 3], seed));
        tokio::time::timeout(Duration::from_secs(120), join_all(handles)).await.expect("nothing wedges");
        drop(readers);
        assert_eq!(bench.memory.used(), 0);
    });
}

async fn wander(bench: &Bench, reader: &Reader, seed: u64) {
    let cursor = Cursor::default();
    let mut x = seed;
    let mut random = |below: u64| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) % below
    };
    let mut at = 0;
    for _ in 0..150 {
        let part = ByteRange::at(at, 1 + random(300 * KIB));
        match random(8) {
            0 => bench.check(part, &reader.fetch_exact(part).await.unwrap()),
            _ => bench.read(reader, &cursor, part, MIB).await.unwrap(),
        }
        at = match random(16) {
            0 => random(bench.size),
            1 => at.saturating_sub(random(MIB)),
            _ => part.end % bench.size,
        };
    }
}

#[test]
fn many_readers_get_by_on_little_memory() {
    multi(async {
        let bench = Bench::with_memory(12 * MIB, 3 * MIB).await;
        let reads = (0..8).map(|_| async {
            let reader = bench.open().await;
            bench.read(&reader, &Cursor::default(), bench.whole(), 128 * KIB).await.unwrap();
        });
        join_all(reads).await;
        assert_eq!((bench.memory.used(), bench.engine.held()), (0, 0));
    });
}

#[test]
fn a_read_gets_on_when_others_hold_all_memory() {
    multi(async {
        let bench = Bench::with_memory(4 * MIB, MIB).await;
        let all = bench.memory.acquire(MIB).await;
        let reader = bench.open().await;
        bench.read(&reader, &Cursor::default(), bench.whole(), 256 * KIB).await.unwrap();
        drop(all);
    });
}

#[test]
fn what_was_fetched_ahead_makes_room_for_others() {
    multi(async {
        let bench = Bench::with_memory(256 * MIB, 32 * MIB).await;
        let reader = bench.open().await;
        let cursor = Cursor::default();
        bench.read(&reader, &cursor, ByteRange::new(0, 24 * MIB), MIB).await.unwrap();
        assert!(bench.memory.used() > 4 * MIB);
        let grant = bench.memory.acquire(32 * MIB).await;
        assert_eq!(grant.bytes(), 32 * MIB);
        drop(grant);
        bench.read(&reader, &cursor, ByteRange::new(24 * MIB, 48 * MIB), MIB).await.unwrap();
    });
}

#[test]
fn random_reads_fetch_little_more_than_they_ask_for() {
    multi(async {
        let bench = Bench::new(GIB).await;
        let (meta, _) = bench.opened().await;
        let before = bench.sent();
        let reader = bench.engine.reader(key(), &meta);
        let cursor = Cursor::default();
        let mut x = 12_345u64;
        for _ in 0..100 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let part = ByteRange::at((x >> 20) % (GIB - 4096), 4096);
            bench.check(part, &reader.read(&cursor, part).await.unwrap());
        }
        assert!(bench.sent() - before <= 100 * 256 * KIB + MIB);
        assert!(bench.memory.used() <= 4 * MIB);
    });
}

#[test]
fn an_exact_fetch_asks_for_nothing_else_and_keeps_nothing() {
    multi(async {
        let bench = Bench::new(64 * MIB).await;
        let (meta, _) = bench.opened().await;
        let reader = bench.engine.reader(key(), &meta);
        let piece = ByteRange::new(8 * MIB, 16 * MIB);
        bench.check(piece, &reader.fetch_exact(piece).await.unwrap());
        assert_eq!(bench.gets()[1..].iter().map(|get| get.range.unwrap()).collect::<Vec<_>>(), [piece]);
        assert_eq!(bench.memory.used(), 0);
    });
}

#[test]
fn bytes_are_handed_out_as_they_arrive() {
    multi(async {
        let bench = Bench::new(64 * MIB).await;
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        bench.service.plan(
            move |_, range| {
                if range.start == MIB { Act::Stall(200 * KIB, Arc::clone(&held)) } else { Act::Serve }
            },
        );
        let reader = bench.open().await;
        let cursor = Cursor::default();
        bench.read(&reader, &cursor, ByteRange::new(0, MIB + 128 * KIB), 128 * KIB).await.unwrap();
        wait_until("the service has sent what it may", || bench.gets()[1].sent == 200 * KIB).await;
        gate.add_permits(1);
        bench.read(&reader, &cursor, ByteRange::new(MIB + 128 * KIB, 2 * MIB), 128 * KIB).await.unwrap();
    });
}

#[test]
fn dropping_the_reader_ends_its_fetches() {
    multi(async {
        let bench = Bench::new(64 * MIB).await;
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        bench.service.plan(
            move |_, range| {
                if range.start >= MIB { Act::Stall(200 * KIB, Arc::clone(&held)) } else { Act::Serve }
            },
        );
        let reader = bench.open().await;
        let cursor = Cursor::default();
        bench.read(&reader, &cursor, ByteRange::new(0, MIB), 128 * KIB).await.unwrap();
        wait_until("the fetch ahead began", || bench.gets().len() == 2).await;
        drop(reader);
        assert_eq!(bench.memory.used(), 0);
        wait_until("the connection is closed", || *bench.service.hung_up.lock() == 1).await;
    });
}

#[test]
fn closing_a_handle_frees_what_only_it_wanted() {
    multi(async {
        let bench = Bench::new(256 * MIB).await;
        let reader = bench.open().await;
        let (going, staying) = (Cursor::default(), Cursor::default());
        bench.read(&reader, &staying, ByteRange::new(0, 64 * KIB), 64 * KIB).await.unwrap();
        bench.read(&reader, &going, ByteRange::new(0, 64 * MIB), MIB).await.unwrap();
        assert!(bench.memory.used() > 32 * MIB);
        drop(going);
        assert!(bench.memory.used() <= 8 * MIB, "{:?}", bench.memory);
    });
}

#[test]
fn corrupt_bytes_that_nobody_has_seen_are_fetched_again() {
    multi(async {
        let bench = Bench::new(900 * KIB).await;
        bench.service.plan(|get, _| if get == 0 { Act::Corrupt(777) } else { Act::Serve });
        let reader = bench.open().await;
        bench.read(&reader, &Cursor::default(), bench.whole(), MIB).await.unwrap();
        assert_eq!(bench.gets().len(), 2);
    });
}

#[test]
fn a_small_object_that_stays_corrupt_is_never_handed_out() {
    multi(async {
        let bench = Bench::new(900 * KIB).await;
        bench.service.plan(|_, _| Act::Corrupt(777));
        let reader = bench.open().await;
        let cursor = Cursor::default();
        assert!(matches!(reader.read(&cursor, bench.whole()).await, Err(ReadError::Corrupt)));
        assert!(matches!(reader.fetch_exact(bench.whole()).await, Err(ReadError::Corrupt)));
        assert!(bench.gets().len() <= 6);
    });
}

#[test]
fn a_large_corrupt_object_is_not_read_to_its_end() {
    multi(async {
        let bench = Bench::new(40 * MIB).await;
        bench.service.plan(|_, range| if range.contains(5 * MIB) { Act::Corrupt(5 * MIB) } else { Act::Serve });
        let reader = bench.open().await;
        let cursor = Cursor::default();
        let mut outcomes = Vec::new();
        for part in split(bench.whole(), MIB) {
            outcomes.push(reader.read(&cursor, part).await.map(drop));
        }
        assert!(outcomes[0].is_ok());
        assert!(matches!(outcomes[39], Err(ReadError::Corrupt)));
        // Another handle begins anew.
        bench.service.plan(|_, _| Act::Serve);
        bench.read(&reader, &Cursor::default(), bench.whole(), MIB).await.unwrap();
    });
}

#[test]
fn an_outage_is_an_error_that_passes() {
    multi(async {
        let bench = Bench::new(64 * MIB).await;
        let reader = bench.open().await;
        bench.service.plan(|_, _| Act::Refuse(503, "ServiceUnavailable"));
        let cursor = Cursor::default();
        let far = ByteRange::at(40 * MIB, 4096);
        let error = reader.read(&cursor, far).await.unwrap_err();
        assert!(
            matches!(error, ReadError::Oss(error) if error.kind == ErrorKind::Server || error.kind == ErrorKind::Throttled)
        );
        bench.service.plan(|_, _| Act::Serve);
        bench.read(&reader, &cursor, far, 4096).await.unwrap();
    });
}
