//! Sessions taken up by the next process: what becomes of them, also while others have a hand in it.

use ossfuse::replay::{Mode, Replay, list_offline};
use ossfuse::spill::{HeaderRecord, Phase, Times};
use serde_json::json;

use super::process::{PIECE, Process};
use super::service::{Service, wait_until};
use super::{assert_no_sessions, assert_object, both, key, pattern, piece, write_into};

fn mode(value: &str) -> HeaderRecord {
    let mut headers = HeaderRecord::default();
    headers.user_meta.insert("mode".into(), value.into());
    headers
}

#[test]
fn an_edit_that_is_all_local_is_published_beside_a_changed_object() {
    let (service, process) = both();
    let key = key("contested");
    let mut content = pattern(1, 150 << 10);
    let file = process.edit(&key, &service.put(&key, &content));
    for offset in [5u64, PIECE + 5] {
        process.write(&file, offset, b"mine").unwrap();
        write_into(&mut content, offset as usize, b"mine");
    }
    file.fsync().unwrap();
    let process = process.crash(&service, true);
    service.put(&key, b"another client's");
    process.replay(Mode::Safe);
    assert_object(&service, &key, b"another client's");
    let beside = service.objects("contested.conflict-");
    assert_eq!(beside.len(), 1, "{beside:?}");
    let name = beside.keys().next().unwrap();
    assert!(service.bytes(name) == content);
    assert_no_sessions(&process);
}

#[test]
fn a_kill_while_a_conflict_copy_is_made_leaves_one_copy() {
    let (service, process) = both();
    let key = key("contested");
    let mut content = pattern(1, 90 << 10);
    let file = process.edit(&key, &service.put(&key, &content));
    process.write(&file, 5, b"mine").unwrap();
    write_into(&mut content, 5, b"mine");
    file.fsync().unwrap();
    let process = process.crash(&service, true);
    service.put(&key, b"another client's");
    service.faults(&json!([{"operation": "PutObject", "action": {"hold": "beside", "reset": "before"}}]));
    let replay = Replay::prepare(&process.engine, Mode::Safe).unwrap();
    let run = process.runtime.spawn(replay.run());
    service.wait_at_gate("beside", 1);
    let process = process.crash(&service, true);
    drop(run);
    service.calm();
    process.replay(Mode::Safe);
    let beside = service.objects("contested.conflict-");
    assert_eq!(beside.len(), 1, "{beside:?}");
    let name = beside.keys().next().unwrap();
    assert!(name.matches("conflict").count() == 1 && service.bytes(name) == content);
    assert_object(&service, &key, b"another client's");
    assert_no_sessions(&process);
}

#[test]
fn an_edit_of_a_changed_object_is_kept_and_nothing_is_mixed() {
    let (service, process) = both();
    let key = key("contested");
    let file = process.edit(&key, &service.put(&key, &pattern(1, 450 << 10)));
    process.write(&file, 5, b"mine").unwrap();
    file.fsync().unwrap();
    let process = process.crash(&service, true);
    service.put(&key, &pattern(2, 450 << 10));
    process.replay(Mode::Safe);
    assert_object(&service, &key, &pattern(2, 450 << 10));
    assert_eq!(service.objects("contested").len(), 1);
    assert_eq!(list_offline(process.layout().root()).unwrap().len(), 1);
}

#[test]
fn a_session_that_cannot_be_published_holds_no_other_up() {
    let (service, process) = both();
    for name in ["refused", "second"] {
        let file = process.create(&key(name), None);
        process.write(&file, 0, name.as_bytes()).unwrap();
        file.fsync().unwrap();
    }
    let process = process.crash(&service, true);
    service.faults(&json!([
        {"operation": "*", "key": "refused", "action": {"status": 403, "code": "AccessDenied"}}
    ]));
    let replay = Replay::prepare(&process.engine, Mode::Safe).unwrap();
    let run = process.runtime.spawn(replay.run());
    wait_until("the second session is published", || service.look(&key("second")).is_some());
    service.calm();
    process.run(run).unwrap();
    assert_object(&service, &key("refused"), b"refused");
    assert_no_sessions(&process);
}

#[test]
fn a_session_that_is_written_again_before_it_is_replayed_is_left_to_its_writer() {
    let (service, process) = both();
    for name in ["first", "reopened"] {
        let file = process.create(&key(name), None);
        process.write(&file, 0, &piece(1)).unwrap();
        process.write(&file, PIECE, &piece(2)).unwrap();
        service.faults(&json!([{"operation": "*", "key": name, "action": {"status": 403, "code": "AccessDenied"}}]));
        assert!(process.publish(&file).is_err());
    }
    let process = process.crash(&service, true);
    service.faults(&json!([{"operation": "HeadObject", "action": {"hold": "turn"}}]));
    let replay = Replay::prepare(&process.engine, Mode::Safe).unwrap();
    let file = process.engine.session_for(&key("reopened")).unwrap();
    let run = process.runtime.spawn(replay.run());
    service.wait_at_gate("turn", 2);
    process.write(&file, 3, b"by a user").unwrap();
    process.run(file.truncate_waiting(PIECE + 7)).unwrap();
    service.open_gate("turn");
    process.run(run).unwrap();
    assert!(service.look(&key("reopened")).is_none(), "published while it was being written");
    let mut content = [piece(1), piece(2)].concat();
    write_into(&mut content, 3, b"by a user");
    content.truncate(PIECE as usize + 7);
    process.publish(&file).unwrap();
    assert_object(&service, &key("reopened"), &content);
    assert_no_sessions(&process);
}

#[test]
fn a_write_while_an_upload_is_taken_up_is_not_lost() {
    let (service, process) = both();
    let file = process.create(&key("taken-up"), None);
    for index in 0..3u64 {
        process.write(&file, index * PIECE, &piece(index)).unwrap();
    }
    wait_until("two parts", || service.requests("UploadPart", "taken-up").len() == 2);
    file.fsync().unwrap();
    let process = process.crash(&service, true);
    service.faults(&json!([{"operation": "ListParts", "times": 1, "action": {"hold_after": "told"}}]));
    let replay = Replay::prepare(&process.engine, Mode::Safe).unwrap();
    let file = process.engine.session_for(&key("taken-up")).unwrap();
    let run = process.runtime.spawn(replay.run());
    service.wait_at_gate("told", 1);
    process.write(&file, 3, b"by a user").unwrap();
    service.open_gate("told");
    process.run(run).unwrap();
    process.publish(&file).unwrap();
    let mut content = [piece(0), piece(1), piece(2)].concat();
    write_into(&mut content, 3, b"by a user");
    assert_object(&service, &key("taken-up"), &content);
}

#[test]
fn the_same_bytes_with_other_attributes_are_not_taken_for_done() {
    for name in ["small", "large"] {
        let (service, process) = both();
        let content = if name == "small" { b"the same".to_vec() } else { [piece(1), piece(2)].concat() };
        let seen = service.put(&key(name), &content);
        let file = process.create(&key(name), Some(seen.etag));
        process.write(&file, 0, &content).unwrap();
        file.set_attributes(mode("33261"), Times::default()).unwrap();
        file.fsync().unwrap();
        let process = process.crash(&service, true);
        process.replay(Mode::Safe);
        let seen = assert_object(&service, &key(name), &content);
        assert_eq!(seen.meta.get("mode").map(String::as_str), Some("33261"));
        assert_no_sessions(&process);
    }
}

#[test]
fn a_truncation_survives_a_kill_even_if_nothing_was_written() {
    let (service, process) = both();
    let content = pattern(1, 250 << 10);
    for (name, size) in [("shorter", 120 << 10), ("longer", 300 << 10)] {
        let file = process.edit(&key(name), &service.put(&key(name), &content));
        process.run(file.truncate_waiting(size)).unwrap();
    }
    let process = process.crash(&service, true);
    process.replay(Mode::Publish);
    assert_object(&service, &key("shorter"), &content[..120 << 10]);
    let mut longer = content;
    longer.resize(300 << 10, 0);
    assert_object(&service, &key("longer"), &longer);
    assert_no_sessions(&process);
}

#[test]
fn a_close_that_failed_is_made_good_by_the_next_process() {
    let (service, process) = both();
    let file = process.create(&key("failed"), None);
    process.write(&file, 0, &[piece(1), piece(2)].concat()).unwrap();
    service.faults(&json!([{"operation": "UploadPart", "action": {"status": 403, "code": "AccessDenied"}}]));
    assert!(process.publish(&file).is_err());
    let process = process.crash(&service, true);
    service.calm();
    process.replay(Mode::Safe);
    assert_object(&service, &key("failed"), &[piece(1), piece(2)].concat());
    assert_no_sessions(&process);
}

#[test]
fn what_was_neither_closed_nor_fsynced_is_kept_or_published_as_asked() {
    let (service, process) = both();
    let content = [piece(1), piece(2), piece(3)].concat();
    service.put(&key("open"), b"old");
    let file = process.create(&key("open"), service.look(&key("open")).map(|seen| seen.etag));
    process.write(&file, 0, &content).unwrap();
    let process = process.crash(&service, true);
    process.replay(Mode::Safe);
    assert_object(&service, &key("open"), b"old");
    assert_eq!(list_offline(process.layout().root()).unwrap().len(), 1);
    let process = process.crash(&service, true);
    process.replay(Mode::Keep);
    assert_object(&service, &key("open"), b"old");
    let process = process.crash(&service, true);
    process.replay(Mode::Publish);
    assert_object(&service, &key("open"), &content);
    assert_no_sessions(&process);
}

#[test]
fn an_unlinked_session_is_gone_with_its_upload_after_a_kill() {
    let (service, process) = both();
    let file = process.create(&key("gone"), None);
    process.write(&file, 0, &piece(1)).unwrap();
    process.write(&file, PIECE, &piece(2)).unwrap();
    wait_until("a part", || service.requests("UploadPart", "gone").len() == 1);
    service.faults(&json!([{"operation": "AbortMultipartUpload", "times": 1, "action": {"hold": "abort"}}]));
    process.run(file.unlink(None)).unwrap();
    assert_eq!(file.status().phase, Phase::Open);
    let process = process.crash(&service, true);
    service.calm();
    process.replay(Mode::Publish);
    assert!(service.look(&key("gone")).is_none());
    assert_no_sessions(&process);
}

#[test]
fn a_damaged_spill_file_of_a_closed_session_is_set_aside_and_never_published() {
    let (service, process) = both();
    let file = process.create(&key("damaged"), None);
    process.write(&file, 0, &piece(1)).unwrap();
    service.faults(&json!([{"operation": "PutObject", "action": {"status": 403, "code": "AccessDenied"}}]));
    assert!(process.publish(&file).is_err());
    let state = process.snapshot(true);
    let folder = std::fs::read_dir(state.path().join("spill")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(folder.join("000000")).unwrap();
    bytes[77] ^= 1;
    std::fs::write(folder.join("000000"), bytes).unwrap();
    service.calm();
    let second = Process::restart_over(&service, state);
    second.replay(Mode::Publish);
    assert!(service.look(&key("damaged")).is_none());
    assert_eq!(list_offline(second.layout().root()).unwrap().len(), 1);
}

#[test]
fn a_stale_edit_is_refused_at_a_live_close_of_a_session_taken_up() {
    let service = Service::start();
    let process = Process::start(&service);
    let file = process.edit(&key("stale"), &service.put(&key("stale"), &pattern(3, 350 << 10)));
    process.write(&file, 0, b"mine").unwrap();
    // The copies ask for the version that was edited, however fresh the last look at it is.
    service.put(&key("stale"), &pattern(4, 350 << 10));
    assert!(matches!(process.publish(&file), Err(ossfuse::write::WriteError::Stale)));
    assert_object(&service, &key("stale"), &pattern(4, 350 << 10));
    process.run(file.keep(ossfuse::write::CONFLICT)).unwrap();
    let process = process.crash(&service, true);
    process.replay(Mode::Publish);
    assert_object(&service, &key("stale"), &pattern(4, 350 << 10));
    assert_eq!(list_offline(process.layout().root()).unwrap().len(), 1);
}

#[test]
fn an_empty_spill_file_makes_no_file_longer() {
    let (service, process) = both();
    let file = process.create(&key("longer"), None);
    process.write(&file, 0, &pattern(1, 500)).unwrap();
    file.fsync().unwrap();
    // What a kill leaves between the making of a spill file and the write that it was made for.
    let state = process.snapshot(true);
    let folder = std::fs::read_dir(state.path().join("spill")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(folder.join("000003"), b"").unwrap();
    let second = Process::restart_over(&service, state);
    second.replay(Mode::Safe);
    assert_object(&service, &key("longer"), &pattern(1, 500));
    assert_no_sessions(&second);
}

#[test]
fn what_is_published_in_the_background_is_promised_at_once() {
    let (service, process) = both();
    let file = process.create(&key("background"), None);
    process.write(&file, 0, &pattern(1, 500)).unwrap();
    service.faults(&json!([{"operation": "PutObject", "action": {"hold": "put", "reset": "before"}}]));
    let inside = process.runtime.enter();
    file.publish_in_background();
    drop(inside);
    service.wait_at_gate("put", 1);
    let process = process.crash(&service, true);
    service.calm();
    process.replay(Mode::Safe);
    assert_object(&service, &key("background"), &pattern(1, 500));
    assert_no_sessions(&process);
}

/// What a kill leaves in the middle of the making of a session: nothing was promised, and nothing is to be looked at.
#[test]
fn a_session_that_was_never_begun_leaves_no_trace() {
    let (service, process) = both();
    let state = process.snapshot(true);
    for (name, session_file) in [("0000000000000a-00000001", false), ("0000000000000b-00000002", true)] {
        let folder = state.path().join("spill").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        if session_file {
            std::fs::write(folder.join("session"), b"").unwrap();
        }
    }
    let second = Process::restart_over(&service, state);
    second.replay(Mode::Safe);
    assert_no_sessions(&second);
    assert_eq!(std::fs::read_dir(second.layout().quarantine()).map_or(0, Iterator::count), 0);
}
