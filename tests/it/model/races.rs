//! Several hands on one file: writers, fetches, publications, renames.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use ossfuse::spill::{HeaderRecord, Times};
use ossfuse::write::{Step, WriteError};
use serde_json::json;

use super::service::wait_until;
use super::{assert_no_sessions, assert_object, both, key, pattern, piece, write_into};
use crate::model::process::PIECE;

#[test]
fn a_fetch_does_not_touch_what_replaced_its_piece() {
    let (service, process) = both();
    let key = key("fetched");
    let mut content = pattern(1, 250 << 10);
    let seen = service.put(&key, &content);
    let file = process.edit(&key, &seen);
    service.faults(&json!([{"operation": "GetObject", "times": 1, "action": {"hold": "get"}}]));
    let small = process.runtime.spawn({
        let file = file.clone();
        async move { file.write_waiting(10, &[1; 10]).await }
    });
    service.wait_at_gate("get", 1);
    assert_eq!(file.write(0, &piece(2)).unwrap(), Step::Done);
    service.open_gate("get");
    process.run(small).unwrap().unwrap();
    write_into(&mut content, 0, &piece(2));
    write_into(&mut content, 10, &[1; 10]);
    assert!(process.read(&file).unwrap() == content);
    process.publish(&file).unwrap();
    assert_object(&service, &key, &content);
}

#[test]
fn a_truncation_is_not_undone_by_a_fetch() {
    let (service, process) = both();
    let key = key("fetched");
    let mut content = pattern(1, 250 << 10);
    let file = process.edit(&key, &service.put(&key, &content));
    service.faults(&json!([{"operation": "GetObject", "times": 1, "action": {"hold": "get"}}]));
    let small = process.runtime.spawn({
        let file = file.clone();
        async move { file.write_waiting(PIECE + 10, &[1; 10]).await }
    });
    service.wait_at_gate("get", 1);
    process.run(file.truncate_waiting(PIECE + 5)).unwrap();
    process.run(file.truncate_waiting(PIECE * 2)).unwrap();
    service.open_gate("get");
    process.run(small).unwrap().unwrap();
    content.truncate(PIECE as usize + 5);
    content.resize(PIECE as usize * 2, 0);
    write_into(&mut content, PIECE as usize + 10, &[1; 10]);
    assert!(process.read(&file).unwrap() == content);
    process.publish(&file).unwrap();
    assert_object(&service, &key, &content);
}

#[test]
fn writers_go_on_while_the_file_is_published_and_none_is_torn() {
    let (service, process) = both();
    let key = key("shared");
    const WRITERS: usize = 3;
    let file = process.create(&key, None);
    let acknowledged: Vec<AtomicU8> = (0..WRITERS).map(|_| AtomicU8::new(0)).collect();
    let stop = AtomicBool::new(false);
    let offset = |writer: usize| writer as u64 * PIECE * 2;
    for writer in 0..WRITERS {
        process.write(&file, offset(writer), &vec![0; PIECE as usize * 2]).unwrap();
    }
    std::thread::scope(|scope| {
        for (writer, acknowledged) in acknowledged.iter().enumerate() {
            let (file, stop, process) = (&file, &stop, &process);
            scope.spawn(move || {
                for version in 1..=250u8 {
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    match process.write(file, offset(writer), &vec![version; PIECE as usize * 2]) {
                        Ok(()) => acknowledged.store(version, Ordering::Release),
                        Err(WriteError::Retired) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        wait_until("some writes", || acknowledged.iter().all(|version| version.load(Ordering::Acquire) > 2));
        let before: Vec<u8> = acknowledged.iter().map(|version| version.load(Ordering::Acquire)).collect();
        process.publish(&file).unwrap();
        stop.store(true, Ordering::Release);
        let bytes = service.bytes(key.as_str());
        for (writer, before) in before.into_iter().enumerate() {
            let own = &bytes[offset(writer) as usize..][..PIECE as usize * 2];
            assert!(own.iter().all(|byte| *byte == own[0]), "writer {writer} was torn");
            assert!(own[0] >= before, "writer {writer}: {before} was acknowledged, {} published", own[0]);
        }
        assert_object(&service, &key, &bytes);
    });
    // What a writer was told is in the object: nobody was told more before the session ended.
    let bytes = service.bytes(key.as_str());
    for (writer, last) in acknowledged.iter().enumerate() {
        assert_eq!(bytes[offset(writer) as usize], last.load(Ordering::Acquire), "writer {writer}");
    }
}

#[test]
fn truncations_and_writes_side_by_side_end_in_one_of_their_orders() {
    let (_service, process) = both();
    for round in 0..60u64 {
        let file = process.create(&key("race"), None);
        let data = piece(round + 1);
        process.write(&file, 0, &piece(0)).unwrap();
        process.write(&file, PIECE, &piece(0)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| process.write(&file, PIECE, &data).unwrap());
            scope.spawn(|| process.run(file.truncate_waiting(PIECE + 100)).unwrap());
        });
        let content = process.read(&file).unwrap();
        let tail = &content[PIECE as usize..];
        assert!(content.len() as u64 == PIECE + 100 || content.len() as u64 == PIECE * 2, "{}", content.len());
        assert!(*tail == data[..tail.len()], "round {round}: an acknowledged write is lost");
        process.run(file.discard()).unwrap();
    }
}

#[test]
fn a_part_that_is_written_again_while_it_is_sent_is_sent_again() {
    let (service, process) = both();
    let key = key("again");
    let file = process.create(&key, None);
    service.faults(&json!([{"operation": "UploadPart", "part": 1, "times": 1, "action": {"hold_after": "sent"}}]));
    process.write(&file, 0, &piece(1)).unwrap();
    process.write(&file, PIECE, &piece(2)).unwrap();
    service.wait_at_gate("sent", 1);
    process.write(&file, 7, b"later").unwrap();
    service.open_gate("sent");
    process.publish(&file).unwrap();
    let mut content = [piece(1), piece(2)].concat();
    write_into(&mut content, 7, b"later");
    assert_object(&service, &key, &content);
    assert_eq!(service.requests("UploadPart", "again").iter().filter(|part| **part == 1).count(), 2);
}

#[test]
fn a_rename_leaves_no_upload_behind() {
    let (service, process) = both();
    let (old, new) = (key("old"), key("new"));
    let file = process.create(&old, None);
    service.faults(&json!([{"operation": "InitiateMultipartUpload", "times": 1, "action": {"hold": "begin"}}]));
    process.write(&file, 0, &piece(1)).unwrap();
    process.write(&file, PIECE, &piece(2)).unwrap();
    service.wait_at_gate("begin", 1);
    process.run(file.rename(new.clone(), None)).unwrap();
    service.open_gate("begin");
    process.publish(&file).unwrap();
    assert_object(&service, &new, &[piece(1), piece(2)].concat());
    assert!(service.look(&old).is_none());
    wait_until("the upload under the old name is given up", || {
        service.requests("InitiateMultipartUpload", "old").len() == 1 && service.uploads("old") == 0
    });
    assert_no_sessions(&process);
}

#[test]
fn a_publication_that_is_dropped_half_way_can_be_done_again() {
    let (service, process) = both();
    let key = key("dropped");
    let file = process.create(&key, None);
    process.write(&file, 0, &[piece(1), piece(2), piece(3)].concat()).unwrap();
    service.faults(&json!([{"operation": "UploadPart", "part": 2, "times": 1, "action": {"hold": "part"}}]));
    let first = process.runtime.spawn({
        let file = file.clone();
        async move { file.publish().await }
    });
    service.wait_at_gate("part", 1);
    first.abort();
    assert!(process.run(first).is_err());
    service.calm();
    process.publish(&file).unwrap();
    assert_object(&service, &key, &[piece(1), piece(2), piece(3)].concat());
}

#[test]
fn discarding_a_file_gives_its_upload_up() {
    let (service, process) = both();
    let file = process.create(&key("unwanted"), None);
    service.faults(&json!([{"operation": "InitiateMultipartUpload", "times": 1, "action": {"hold": "begin"}}]));
    process.write(&file, 0, &piece(1)).unwrap();
    process.write(&file, PIECE, &piece(2)).unwrap();
    service.wait_at_gate("begin", 1);
    process.run(file.unlink(None)).unwrap();
    process.write(&file, 5, b"still there").unwrap();
    let mut content = [piece(1), piece(2)].concat();
    write_into(&mut content, 5, b"still there");
    assert!(process.read(&file).unwrap() == content);
    assert!(process.run(file.discard()).unwrap().is_none());
    service.open_gate("begin");
    wait_until("the upload is given up", || {
        service.requests("InitiateMultipartUpload", "unwanted").len() == 1 && service.uploads("unwanted") == 0
    });
    assert!(service.look(&key("unwanted")).is_none());
    assert_no_sessions(&process);
}

#[test]
fn attributes_that_change_while_the_file_is_sent_reach_the_object() {
    for pieces in [1u64, 3] {
        let (service, process) = both();
        let key = key("attributes");
        let file = process.create(&key, None);
        for index in 0..pieces {
            process.write(&file, index * PIECE, &piece(index)).unwrap();
        }
        service.faults(&json!([
            {"operation": "PutObject", "times": 1, "action": {"hold_after": "end"}},
            {"operation": "CompleteMultipartUpload", "times": 1, "action": {"hold_after": "end"}},
        ]));
        let published = process.runtime.spawn({
            let file = file.clone();
            async move { file.publish().await }
        });
        service.wait_at_gate("end", 1);
        let mut headers = HeaderRecord::default();
        headers.user_meta.insert("mode".into(), "33188".into());
        file.set_attributes(headers.clone(), Times::default()).unwrap();
        service.open_gate("end");
        let published = process.run(published).unwrap().unwrap();
        let seen = service.look(&key).unwrap();
        assert_eq!(seen.meta.get("mode").map(String::as_str), Some("33188"));
        assert_eq!(seen.etag, published.etag);
        assert!(matches!(file.set_attributes(headers, Times::default()), Err(WriteError::Retired)));
    }
}
