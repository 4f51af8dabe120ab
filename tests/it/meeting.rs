//! Names that are taken in the bucket although the last listing shows them free: another client was there since.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use super::harness::{Bench, KIB, Mount, assert_same, noise, told};

/// A mount that believes the bucket to be empty for as long as the test takes.
fn mount_of_yesterday<'b>(bench: &'b Bench, options: &[&str]) -> Mount<'b> {
    let mount =
        bench.mount_quiet(&[&["--list-ttl", "1h", "--attr-ttl", "1h", "--part-size", "100KiB"], options].concat());
    mount.sh("ls");
    for key in ["a", "b", "c", "d", "e", "f"] {
        bench.server.put(key, b"theirs\n");
    }
    mount
}

#[test]
fn what_is_appended_goes_behind_what_another_client_wrote() {
    let Some(bench) = Bench::new() else { return };
    let mount = mount_of_yesterday(&bench, &[]);
    mount.sh("echo ours >> a");
    assert_eq!(bench.server.get("a").as_deref(), Some(&b"theirs\nours\n"[..]));
    assert_eq!(mount.sh("cat a"), "theirs\nours\n");

    // Larger than a part: the upload itself is refused.
    let large = noise(1, 350 * KIB);
    bench.file("large", &large);
    mount.sh("cat ../large >> b");
    assert_same(&bench.server.get("b").unwrap(), &[&b"theirs\n"[..], &large].concat(), "b");
    mount.sh("echo more >> b");
    assert_same(&mount.read("b"), &[&b"theirs\n"[..], &large, b"more\n"].concat(), "b, read");
    assert_eq!(bench.server.uploads().len(), 0);
    mount.umount();
}

#[test]
fn what_is_touched_is_not_emptied_and_what_is_written_whole_wins() {
    let Some(bench) = Bench::new() else { return };
    let mount = mount_of_yesterday(&bench, &[]);
    mount.sh("touch -d @1000000000 a");
    assert_eq!(bench.server.get("a").as_deref(), Some(&b"theirs\n"[..]));
    assert_eq!(fs::metadata(mount.path("a")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(mount.sh("cat a"), "theirs\n");
    let counts = bench.counting(|| drop(mount.sh("echo ours > b")));
    assert_eq!(counts.all(), [("PutObject", 1)]);
    assert_eq!(bench.server.get("b").as_deref(), Some(&b"ours\n"[..]));
    let large = noise(2, 250 * KIB);
    bench.file("large", &large);
    mount.sh("dd if=../large of=c bs=50K conv=notrunc status=none");
    assert_same(&bench.server.get("c").unwrap(), &large, "c");
    mount.sh("cp ../large d");
    assert_same(&bench.server.get("d").unwrap(), &large, "d");
    for script in ["ln -s x e", "mkfifo f"] {
        assert!(!mount.try_sh(script).status.success(), "{script}");
    }
    assert_eq!(mount.sh("cat e f"), "theirs\ntheirs\n");
    let counts = bench.counting(|| drop(mount.sh("echo new >> new")));
    assert_eq!(counts.all(), [("PutObject", 1)], "what is new costs no more");
    mount.umount();
}

#[test]
fn a_file_that_must_be_new_in_the_bucket_fails_at_its_close() {
    let Some(bench) = Bench::new() else { return };
    let mount = mount_of_yesterday(&bench, &["--exclusive-create", "remote"]);
    // dd tells what its close was told.
    let dd = |name: &str| {
        let mut command = Command::new("dd");
        command.arg(format!("of={name}")).args(["conv=excl", "status=none", "if=/dev/null"]);
        command.current_dir(mount.path("")).output().unwrap()
    };
    let output = dd("a");
    assert!(!output.status.success() && told(&output).contains("File exists"), "{}", told(&output));
    assert_eq!(bench.server.get("a").as_deref(), Some(&b"theirs\n"[..]));
    assert_eq!(mount.sh("cat a"), "theirs\n");
    assert!(dd("new").status.success());
    assert_eq!(bench.server.get("new").as_deref(), Some(&b""[..]));
    let mut file = fs::File::options().create_new(true).write(true).open(mount.path("new2")).unwrap();
    file.write_all(&noise(3, 250 * KIB)).unwrap();
    drop(file);
    assert_same(&bench.server.get("new2").unwrap(), &noise(3, 250 * KIB), "new2");
}
