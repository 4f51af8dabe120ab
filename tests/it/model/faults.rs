//! Publication over a service that fails: the object is the old one or the whole new one, and in the end the new.

use serde_json::{Value, json};

use super::service::Service;
use super::{assert_no_sessions, assert_object, both, key, pattern, piece};
use crate::model::process::{PIECE, Process};

/// Publishes until it is done, as the background would; how many tries failed.
fn publish_at_last(process: &Process, file: &std::sync::Arc<ossfuse::write::DirtyFile>) -> usize {
    for failed in 0..5 {
        if process.publish(file).is_ok() {
            return failed;
        }
    }
    panic!("it is never published");
}

/// Writes a file of some pieces over an object under a fault; the tries that failed.
fn under(service: &Service, process: &Process, name: &str, pieces: u64, rules: &Value) -> usize {
    let key = key(name);
    let old = service.put(&key, b"old");
    let file = process.create(&key, Some(old.etag));
    let content: Vec<u8> = (0..pieces).flat_map(|index| piece(index + 1)).collect();
    service.faults(rules);
    for (index, bytes) in content.chunks(PIECE as usize).enumerate() {
        process.write(&file, index as u64 * PIECE, bytes).unwrap();
        assert_object(service, &key, b"old");
    }
    let failed = publish_at_last(process, &file);
    service.calm();
    assert_object(service, &key, &content);
    assert_no_sessions(process);
    failed
}

#[test]
fn one_fault_does_not_fail_a_close() {
    let (service, process) = both();
    let faults = [
        ("PutObject", json!({"status": 503, "code": "ServiceUnavailable"})),
        ("PutObject", json!({"reset": "before"})),
        ("PutObject", json!({"reset": "after"})),
        ("PutObject", json!({"corrupt_body": true})),
        ("InitiateMultipartUpload", json!({"status": 503, "code": "ServiceUnavailable"})),
        ("UploadPart", json!({"status": 503, "code": "ServiceUnavailable"})),
        ("UploadPart", json!({"reset": "before"})),
        ("UploadPart", json!({"reset": "after"})),
        ("UploadPart", json!({"corrupt_body": true})),
        ("UploadPart", json!({"status": 404, "code": "NoSuchUpload"})),
        ("CompleteMultipartUpload", json!({"status": 503, "code": "ServiceUnavailable"})),
        ("CompleteMultipartUpload", json!({"reset": "after"})),
        ("CompleteMultipartUpload", json!({"status": 404, "code": "NoSuchUpload"})),
        ("CompleteMultipartUpload", json!({"status": 400, "code": "InvalidPart"})),
        ("CompleteMultipartUpload", json!({"garbage": "xml"})),
    ];
    for (at, (operation, action)) in faults.into_iter().enumerate() {
        let pieces = if operation == "PutObject" { 1 } else { 3 };
        let rules = json!([{"operation": operation, "times": 1, "action": action}]);
        let failed = under(&service, &process, &format!("one-{at}"), pieces, &rules);
        let settled = operation != "CompleteMultipartUpload" || action.get("garbage").is_none();
        assert!(failed == 0 || !settled, "{operation} {action}: close failed {failed} times");
    }
}

#[test]
fn a_lost_upload_does_not_strand_the_parts_under_way() {
    let (service, process) = both();
    let key = key("stranded");
    let file = process.create(&key, None);
    process.write(&file, 0, &[piece(1), piece(2), piece(3)].concat()).unwrap();
    service.faults(&json!([
        {"operation": "UploadPart", "part": 1, "times": 1, "action": {"status": 404, "code": "NoSuchUpload"}},
        {"operation": "UploadPart", "part": 2, "times": 1, "action": {"hold": "late"}},
    ]));
    let first = process.runtime.spawn({
        let file = file.clone();
        async move { file.publish().await }
    });
    service.wait_at_gate("late", 1);
    super::service::wait_until("part 3 and the loss of part 1", || {
        service.requests("UploadPart", "stranded").contains(&3)
    });
    service.open_gate("late");
    if process.run(first).unwrap().is_err() {
        publish_at_last(&process, &file);
    }
    assert_object(&service, &key, &[piece(1), piece(2), piece(3)].concat());
}

#[test]
fn an_edit_over_faults_is_whole() {
    let (service, process) = both();
    for (at, rules) in [
        json!([{"operation": "GetObject", "times": 1, "action": {"truncate_body": 1000}}]),
        json!([{"operation": "GetObject", "times": 1, "action": {"reset": "before"}}]),
        json!([{"operation": "UploadPartCopy", "times": 1, "action": {"status": 404, "code": "NoSuchUpload"}}]),
        json!([{"operation": "UploadPartCopy", "times": 1, "action": {"reset": "after"}}]),
        json!([{"operation": "ListParts", "times": 1, "action": {"reset": "before"}}]),
        json!([{"operation": "CompleteMultipartUpload", "times": 1, "action": {"reset": "after"}}]),
        json!([{"operation": "CompleteMultipartUpload", "times": 1, "action": {"status": 404, "code": "NoSuchUpload"}}]),
    ]
    .into_iter()
    .enumerate()
    {
        let key = key(&format!("edit-{at}"));
        let mut content = pattern(9, 450 << 10);
        let file = process.edit(&key, &service.put(&key, &content));
        service.faults(&rules);
        process.write(&file, 210 << 10, b"changed").unwrap();
        super::write_into(&mut content, 210 << 10, b"changed");
        assert_eq!(publish_at_last(&process, &file), 0, "{rules}");
        service.calm();
        assert_object(&service, &key, &content);
    }
    assert_no_sessions(&process);
}

#[test]
fn bytes_of_the_base_that_broke_on_the_way_are_not_published() {
    let (service, process) = both();
    let broken = json!([{"operation": "GetObject", "times": 1, "action": {"corrupt_body": true}}]);
    // All of it is fetched at once: that is seen at once, and done again.
    let small = key("small");
    let mut content = pattern(1, 5000);
    let seen = service.put(&small, &content);
    let file = process.edit(&small, &seen);
    service.faults(&broken);
    process.write(&file, 10, b"new").unwrap();
    service.calm();
    content[10..13].copy_from_slice(b"new");
    process.publish(&file).unwrap();
    assert_object(&service, &small, &content);

    // A piece of it: its sum and those of what is copied must be that of the whole.
    let large = key("large");
    let content: Vec<u8> = (0..4).flat_map(|index| piece(index + 1)).collect();
    for is_broken in [false, true] {
        let seen = service.put(&large, &content);
        let file = process.edit(&large, &seen);
        service.faults(&if is_broken { broken.clone() } else { json!([]) });
        process.write(&file, 2 * PIECE + 7, b"new").unwrap();
        service.calm();
        let published = process.publish(&file);
        assert_eq!(published.is_err(), is_broken, "{published:?}");
        let mut wanted = content.clone();
        if !is_broken {
            wanted[2 * PIECE as usize + 7..][..3].copy_from_slice(b"new");
        }
        assert_object(&service, &large, &wanted);
        process.run(file.discard()).unwrap();
    }
}
