//! The paths that run for every write, part, request and listing, measured alone: `cargo bench`.
//!
//! Nothing here asserts a time; compare before and after a change (docs/BENCHMARKS.md). `cargo bench -- --quick` is
//! short.

use std::fmt::Write;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ossfuse::base::{ByteRange, ObjectKey, crc64, time};
use ossfuse::journal::Journal;
use ossfuse::ledger::{HowRecord, Ledger, Record};
use ossfuse::oss::{Addressing, Client, ClientOptions, Credentials, Endpoint, Limits, SignatureVersion, measured};
use ossfuse::spill::{HeaderRecord, Layout, LockedFolder, SpillStore, Times};
use ossfuse::upload::{Plan, UploadEngine, UploadOptions};
use ossfuse::write::{DirtyFile, WriteEngine};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn credentials() -> Credentials {
    Credentials { access_key_id: "test-ak".into(), access_key_secret: "test-sk".into(), security_token: None }
}

/// A client of a service that nobody asks: no part gets full here.
fn client() -> Client {
    Client::new(ClientOptions {
        endpoint: Endpoint { https: false, host: "127.0.0.1".into(), port: Some(9) },
        bucket: "bucket".into(),
        region: Some("cn-hangzhou".into()),
        addressing: Addressing::Path,
        signature: SignatureVersion::V4,
        credentials: credentials(),
        try_timeout: Duration::from_secs(20),
        outage_timeout: Duration::ZERO,
        limits: Limits::default(),
    })
    .expect("valid options")
}

/// write(2) below the kernel's interface: plan, pwrite into the spill, running sum.
fn writes(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // On a disk: a tmpfs would measure memory.
    let root = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let folder = LockedFolder::lock(Layout::new(root.path()), "a benchmark").expect("nobody else has it");
    let (journal, _writer) = Journal::open(&folder.layout().journal()).expect("a new journal");
    let upload = UploadEngine::new(client(), journal, UploadOptions { workers: 1 });
    let engine = WriteEngine::new(upload, SpillStore::open(&folder), 1024 * MIB, runtime.handle().clone());
    let mut group = c.benchmark_group("write");
    for (name, size) in [("4 KiB", 4 * KIB), ("128 KiB", 128 * KIB), ("1 MiB", MIB)] {
        let key = ObjectKey::parse(&size.to_string()).expect("a key");
        let file = DirtyFile::create(&engine, key, None, HeaderRecord::default(), Times::default());
        let data = vec![7; size as usize];
        runtime.block_on(file.write_waiting(0, &data)).expect("written");
        let mut offset = size;
        group.throughput(Throughput::Bytes(size));
        group.bench_function(format!("{name}, in order"), |b| {
            b.iter(|| {
                // The same 256 MiB over and over: it stays in the page cache.
                offset = if offset >= 256 * MIB { 0 } else { offset + size };
                black_box(file.write(offset, &data).expect("written"));
            });
        });
        group.bench_function(format!("{name}, anywhere"), |b| {
            let mut state = 1_u64;
            b.iter(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (state >> 33) % (256 * MIB / size) * size;
                black_box(file.write(at, &data).expect("written"));
            });
        });
    }
    group.finish();
}

/// What it costs that the kernel's inodes and handles outlive a worker: each is in the ledger before it is told.
fn ledger(c: &mut Criterion) {
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let (ledger, _) = Ledger::open(&folder.path().join("ledger"), 1).expect("a new ledger");
    let mut group = c.benchmark_group("ledger");
    let mut ino = 1 << 40;
    group.bench_function("a new inode", |b| {
        b.iter(|| {
            ino += 1;
            // As long as most names are.
            let name = "some-name-of-a-file.data".into();
            ledger.note(&Record::Placed { ino, parent: 1 << 40, name, kind: 0o100_000 });
            ledger.note(&Record::Told { ino, unique: ino * 2 });
            ledger.commit();
            ledger.note(&Record::Dropped { ino });
        });
    });
    let how = HowRecord { readable: true, writable: true, append: false, opener: Some((12_345, 678_901)) };
    group.bench_function("a new handle", |b| {
        b.iter(|| {
            ino += 1;
            ledger.note(&Record::Opened { unique: ino * 2, fh: ino, ino: 1 << 40, how });
            ledger.commit();
            ledger.note(&Record::Closed { fh: ino });
        });
    });
    group.finish();
}

fn sums(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc64");
    for (name, size) in [("4 KiB", 4 * KIB), ("8 MiB", 8 * MIB)] {
        let data = vec![7; size as usize];
        group.throughput(Throughput::Bytes(size));
        group.bench_function(name, |b| b.iter(|| crc64::checksum(black_box(&data))));
    }
    group.finish();
    c.bench_function("crc64: combine parts of 8 MiB", |b| {
        b.iter(|| crc64::combine(black_box(1), black_box(2), black_box(8 * MIB)));
    });
}

fn plans(c: &mut Criterion) {
    let plan = Plan::new(8 * MIB, 0);
    let mut offset = 0;
    c.bench_function("plan: piece and part of an offset", |b| {
        b.iter(|| {
            offset = (offset + 12_345_678_901) % (10 << 40);
            black_box((plan.piece_at(offset), plan.part_at(offset), plan.pieces_in(ByteRange::at(offset, MIB))))
        });
    });
}

fn listings(c: &mut Criterion) {
    let mut body = String::from("<?xml version=\"1.0\"?><ListBucketResult><EncodingType>url</EncodingType>");
    for n in 0..1000 {
        write!(
            body,
            "<Contents><Key>some%2Fdirectory%2Fwith-a-file-{n:06}.data</Key>\
             <LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;{n:032X}&quot;</ETag><Type>Normal</Type>\
             <Size>{n}</Size><StorageClass>Standard</StorageClass></Contents>"
        )
        .expect("writing to a string");
    }
    body.push_str("<IsTruncated>false</IsTruncated></ListBucketResult>");
    let mut group = c.benchmark_group("listing");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("a page of 1,000", |b| {
        b.iter(|| black_box(measured::listing(body.as_bytes()).expect("a page").entries.len()));
    });
    group.finish();
}

fn signatures(c: &mut Criterion) {
    let signing = measured::Signing::new(credentials(), "cn-hangzhou").expect("a good credential");
    let at = time::now();
    c.bench_function("signature: V4 of an UploadPart", |b| {
        b.iter(|| black_box(signing.upload_part(black_box("some/directory/with a file.data"), at)));
    });
}

criterion_group!(hot_paths, writes, ledger, sums, plans, listings, signatures);
criterion_main!(hot_paths);
