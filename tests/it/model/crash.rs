//! A kill at every step of a publication, before and after the service has done it: the object is the old one or
//! the whole new one, and the next process makes it the new one without sending twice what the service has.

use std::sync::Arc;

use ossfuse::replay::Mode;
use ossfuse::spill::{HeaderRecord, Times};
use ossfuse::write::DirtyFile;
use serde_json::json;

use super::process::Process;
use super::service::{Service, wait_until};
use super::{assert_no_sessions, assert_object, key, pattern, piece, write_into};
use crate::model::process::PIECE;

/// A file about to be closed.
struct Case {
    name: String,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Case {
    fn make(kind: &str, name: String, service: &Service, process: &Process) -> (Self, Arc<DirtyFile>) {
        let key = key(&name);
        let old = pattern(77, if kind == "edit" { 450 << 10 } else { 10 });
        let seen = service.put(&key, &old);
        let (file, new) = match kind {
            "small" => {
                let file = process.create(&key, Some(seen.etag));
                process.write(&file, 0, &pattern(5, 5000)).unwrap();
                (file, pattern(5, 5000))
            }
            "large" => {
                let file = process.create(&key, Some(seen.etag));
                let new = [piece(1), piece(2), piece(3)[..500].to_vec()].concat();
                // Out of order, so that no part is sent before the close.
                let half = PIECE as usize / 2;
                process.write(&file, half as u64, &new[half..]).unwrap();
                process.write(&file, 0, &new[..half]).unwrap();
                (file, new)
            }
            "attributes" => {
                let file = process.create(&key, Some(seen.etag));
                let new = [piece(4), piece(5), piece(6)[..500].to_vec()].concat();
                process.write(&file, 0, &new[..PIECE as usize]).unwrap();
                process.write(&file, PIECE, &new[PIECE as usize..]).unwrap();
                wait_until("a part is sent", || service.requests("UploadPart", &name).contains(&1));
                (file, new)
            }
            _ => {
                let file = process.edit(&key, &seen);
                let mut new = old.clone();
                process.write(&file, 210 << 10, b"changed").unwrap();
                write_into(&mut new, 210 << 10, b"changed");
                process.write(&file, 450 << 10, b"more").unwrap();
                write_into(&mut new, 450 << 10, b"more");
                (file, new)
            }
        };
        let mut headers = HeaderRecord::default();
        headers.user_meta.insert("mode".into(), "33188".into());
        file.set_attributes(headers, Times::default()).unwrap();
        (Self { name, old, new }, file)
    }

    /// Nothing in between is ever seen.
    fn is_published(&self, service: &Service) -> bool {
        let bytes = service.bytes(&self.name);
        assert!(bytes == self.old || bytes == self.new, "{}: neither the old object nor the new one", self.name);
        bytes == self.new
    }
}

fn kill_at(service: &Service, kind: &str, operation: &str, part: Option<u64>, hold: &str) {
    let process = Process::start(service);
    let name = format!("{kind}-{operation}-{}-{hold}", part.unwrap_or_default());
    let (case, file) = Case::make(kind, name, service, &process);
    file.fsync().unwrap();
    let mut action = serde_json::Map::new();
    action.insert(hold.into(), json!("kill"));
    if hold == "hold" {
        // What lies in the socket already must not be taken up when the gate opens.
        action.insert("reset".into(), json!("before"));
    }
    service.faults(&json!([{"operation": operation, "key": case.name, "part": part, "action": action}]));
    let publication = process.runtime.spawn(async move { file.publish().await.map(drop) });
    service.wait_at_gate("kill", 1);
    if operation == "UploadPart" {
        let others = if kind == "edit" { 1 } else { 2 };
        wait_until("the other parts", || service.requests("UploadPart", &case.name).len() >= others);
    }
    let before = case.is_published(service);
    let sent = service.requests("UploadPart", &case.name);
    let process = process.crash(service, true);
    drop(publication);
    service.calm();
    assert_eq!(case.is_published(service), before, "{}", case.name);

    process.replay(Mode::Safe);
    let seen = assert_object(service, &key(&case.name), &case.new);
    assert_eq!(seen.meta.get("mode").map(String::as_str), Some("33188"), "{}", case.name);
    assert_no_sessions(&process);
    assert_eq!(service.objects(&format!("{}.conflict", case.name)).len(), 0, "{}", case.name);
    // What the service answered before the kill, or did without being able to say so, is not sent again.
    let after = service.requests("UploadPart", &case.name);
    for part in sent {
        assert_eq!(after.iter().filter(|again| **again == part).count(), 1, "{}: part {part} again", case.name);
    }
}

#[test]
fn a_kill_at_any_step_of_a_close_is_made_good() {
    let service = Service::start();
    let steps = [
        ("small", "PutObject", None),
        ("large", "InitiateMultipartUpload", None),
        ("large", "UploadPart", Some(1)),
        ("large", "UploadPart", Some(2)),
        ("large", "UploadPart", Some(3)),
        ("large", "CompleteMultipartUpload", None),
        ("edit", "UploadPartCopy", Some(1)),
        ("edit", "UploadPartCopy", Some(4)),
        ("edit", "UploadPart", Some(3)),
        ("edit", "ListParts", None),
        ("edit", "CompleteMultipartUpload", None),
        ("attributes", "CompleteMultipartUpload", None),
        ("attributes", "CopyObject", None),
    ];
    for (kind, operation, part) in steps {
        for hold in ["hold", "hold_after"] {
            kill_at(&service, kind, operation, part, hold);
        }
    }
}

#[test]
fn parts_that_the_service_has_are_not_sent_again() {
    let service = Service::start();
    let process = Process::start(&service);
    let key = key("resumed");
    let file = process.create(&key, None);
    let mut content = Vec::new();
    for index in 0..5u64 {
        process.write(&file, index * PIECE, &piece(index)).unwrap();
        content.extend(piece(index));
    }
    wait_until("four parts", || service.requests("UploadPart", "resumed").len() == 4);
    file.fsync().unwrap();
    process.write(&file, 2 * PIECE + 3, b"changed").unwrap();
    write_into(&mut content, 2 * PIECE as usize + 3, b"changed");
    let process = process.crash(&service, true);
    process.replay(Mode::Safe);
    assert_object(&service, &key, &content);
    let mut sent = service.requests("UploadPart", "resumed");
    sent.sort_unstable();
    assert_eq!(sent, [1, 2, 3, 3, 4, 5]);
    assert_eq!(service.requests("InitiateMultipartUpload", "resumed").len(), 1);
}

#[test]
fn a_lost_journal_costs_parts_and_never_a_byte() {
    let service = Service::start();
    let process = Process::start(&service);
    let key = key("forgotten");
    let file = process.create(&key, None);
    let content = [piece(1), piece(2), piece(3)].concat();
    for (index, bytes) in content.chunks(PIECE as usize).enumerate() {
        process.write(&file, index as u64 * PIECE, bytes).unwrap();
    }
    wait_until("two parts", || service.requests("UploadPart", "forgotten").len() == 2);
    file.fsync().unwrap();
    let process = process.crash(&service, false);
    process.replay(Mode::Safe);
    assert_object(&service, &key, &content);
    assert_no_sessions(&process);
}
