//! Two files that change places: readers and writers of both go along, and no crash loses either.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ossfuse::base::checked;
use serde_json::json;

use super::{errno, killed_renaming, no_intents, reread};
use crate::harness::{Bench, forget_pages, wait_until};

/// `renameat2` with RENAME_EXCHANGE.
pub(crate) fn exchange(one: &Path, two: &Path) -> std::io::Result<()> {
    let [one, two] = [one, two].map(|path| CString::new(path.as_os_str().as_bytes()).unwrap());
    // SAFETY: terminated strings that live through the call.
    checked(unsafe {
        libc::renameat2(libc::AT_FDCWD, one.as_ptr(), libc::AT_FDCWD, two.as_ptr(), libc::RENAME_EXCHANGE)
    })
    .map(drop)
}

#[test]
fn two_files_change_places() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("one", b"first");
    let mount = bench.mount(&[]);
    mount.sh("mkdir d; ls -l");
    let mut open = File::create(mount.path("d/two")).unwrap();
    open.write_all(b"second").unwrap();
    mount.sh("chmod 600 one");
    exchange(&mount.path("one"), &mount.path("d/two")).unwrap();
    assert_eq!(mount.sh("cat one d/two; stat -c ' %a' d/two"), "secondfirst 600\n");
    open.write_all(b", and more").unwrap();
    drop(open);
    mount.settle();
    assert_eq!(bench.server.get("one").as_deref(), Some(&b"second, and more"[..]));
    assert_eq!(bench.server.get("d/two").as_deref(), Some(&b"first"[..]));
    assert_eq!(bench.server.keys(), ["d/", "d/two", "one"]);
    let missing = exchange(&mount.path("one"), &mount.path("absent")).unwrap_err();
    assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
    mount.umount();
}

/// One that fails half way is finished in the background, and those who read the files read on.
#[test]
fn an_exchange_that_fails_is_finished_later() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("one", b"first");
    bench.server.put("two", b"the second");
    let mount = bench.mount(&[]);
    let mut open = ["one", "two"].map(|name| File::open(mount.path(name)).unwrap());
    open.iter_mut().for_each(|file| drop(reread(file)));
    let refuse = json!([{"operation": "CopyObject", "skip": 2, "action": {"status": 403, "code": "AccessDenied"}}]);
    bench.server.faults(&refuse);
    assert_eq!(errno(exchange(&mount.path("one"), &mount.path("two"))), Some(libc::EACCES));
    bench.server.clear_faults();
    wait_until("it is finished", || no_intents(&bench));
    open.iter().for_each(forget_pages);
    let read = [0, 1].map(|at| reread(&mut open[at]));
    assert_eq!(read, [&b"first"[..], b"the second"], "the files that were opened");
    let found = ["one", "two"].map(|key| bench.server.get(key).unwrap());
    assert_eq!(found, [&b"the second"[..], b"first"]);
    drop(open);
    assert_eq!(mount.sh("ls; cat one; echo; cat two"), "one\ntwo\nthe second\nfirst");
    mount.umount();
}

#[test]
fn an_exchange_that_is_killed_loses_neither() {
    let Some(bench) = Bench::new() else { return };
    // Killed at each of its three copies, before it takes effect; and at the delete.
    for (step, operation, skip) in
        [(0, "CopyObject", 0), (1, "CopyObject", 1), (2, "CopyObject", 2), (3, "DeleteObject", 0)]
    {
        bench.server.put("one", b"first");
        bench.server.put("two", b"the second");
        let mount = bench.mount(&[]);
        mount.sh("stat one two");
        killed_renaming(&bench, mount, ["one", "two"], (operation, skip), exchange);
        let mount = bench.mount(&[]);
        wait_until("it is settled", || no_intents(&bench));
        mount.sh("ls");
        let found = [bench.server.get("one").unwrap(), bench.server.get("two").unwrap()];
        let wanted = if step == 0 { ["first", "the second"] } else { ["the second", "first"] };
        assert_eq!(found, wanted.map(|text| text.as_bytes().to_vec()), "step {step}");
        assert_eq!(bench.server.keys(), ["one", "two"], "step {step}");
        mount.umount();
    }
}
