//! Which flush is a close: each way in which a shell or a program lets go of a file, and what is in the bucket then.
//!
//! Right after the command that closes returned, without any waiting: that is the promise.

use std::process::Command;

use serde_json::Value;

use super::harness::{Bench, DEADLINE, KIB, Mount, assert_same, noise, shell, signal, wait_for, wait_until};

/// Runs a script and asserts that it led to one PUT of `key` with `content`, and to no other change.
#[track_caller]
fn one_put(bench: &Bench, mount: &Mount<'_>, script: &str, key: &str, content: &str) {
    let counts = bench.counting(|| {
        mount.sh(script);
        assert_eq!(bench.server.get(key).as_deref(), Some(content.as_bytes()), "{script}");
        mount.settle();
    });
    assert_eq!(counts.number("PutObject"), 1, "{script}: {:?}", counts.all());
    assert_eq!(counts.number("InitiateMultipartUpload"), 0, "{script}");
    assert_eq!(bench.server.get(key).as_deref(), Some(content.as_bytes()), "{script}: after a while");
}

#[test]
fn one_command_is_one_put() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("old", b"what was there before\n");
    let mount = bench.mount(&[]);
    one_put(&bench, &mount, "echo hi > old", "old", "hi\n");
    one_put(&bench, &mount, "echo hi > new", "new", "hi\n");
    one_put(&bench, &mount, ": > empty", "empty", "");
    one_put(&bench, &mount, ": > old", "old", "");
    one_put(&bench, &mount, "touch touched", "touched", "");
    one_put(&bench, &mount, "for i in 1 2 3; do echo $i; echo x >&2; done > loop 2>/dev/null", "loop", "1\n2\n3\n");
    one_put(&bench, &mount, "(echo a; /bin/echo b) > sub", "sub", "a\nb\n");
    one_put(&bench, &mount, "{ echo a; (echo b); /bin/echo c; } > group", "group", "a\nb\nc\n");
    one_put(&bench, &mount, "seq 3 | sort -r | cat > piped; cat piped > /dev/null", "piped", "3\n2\n1\n");
}

#[test]
fn the_old_object_stays_until_the_new_one_is_whole() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("f", b"old\n");
    let mount = bench.mount(&["--part-size", "100KiB"]);
    // Descriptor 3 stays open over all of this; other commands come and go with a copy of it.
    mount.sh("exec 3>f; echo one >&3; /bin/echo two >&3; (echo three >&3); cat ../server/none 2>/dev/null || true; \
              printf old > ../expected; exec 3>&-");
    assert_eq!(bench.server.get("f").unwrap(), b"one\ntwo\nthree\n");
    let mut writer = shell(&mount.path(""), "exec 3>f; seq 100000 >&3; : > ../halfway; read; exec 3>&-")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the writer is half-way", || bench.path("halfway").exists());
    assert_eq!(bench.server.get("f").unwrap(), b"one\ntwo\nthree\n", "half a file never shows");
    assert_eq!(bench.server.keys(), ["f"]);
    drop(writer.stdin.take());
    writer.wait().unwrap();
    mount.settle();
    let wanted = super::harness::sh(&bench.path(""), "seq 100000");
    assert_same(&bench.server.get("f").unwrap(), wanted.as_bytes(), "f");
    assert_eq!(bench.server.uploads(), [Value::Null; 0]);
}

#[test]
fn a_child_that_ends_first_publishes_nothing() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let counts = bench.counting(|| {
        mount.sh("exec 3>f; (echo child >&3); (exec 3>&-); /bin/true; echo parent >&3; exec 3>&-");
        assert_eq!(bench.server.get("f").unwrap(), b"child\nparent\n");
    });
    assert_eq!(counts.number("PutObject"), 1);
}

#[test]
fn a_child_that_outlives_its_parent_is_waited_for_by_nobody_and_not_lost() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("exec 3>f; (until test -e ../go; do sleep 0.01; done; echo late >&3) > /dev/null 2>&1 & echo early >&3");
    std::fs::write(bench.path("go"), "").unwrap();
    wait_until("the child's line is in the bucket", || {
        bench.server.get("f").is_some_and(|content| content == b"early\nlate\n")
    });
}

#[test]
fn a_pipeline_that_inherits_the_file_is_part_of_it() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("exec 3>f; seq 3 | while read n; do echo $n >&3; done; exec 3>&-");
    assert_eq!(bench.server.get("f").unwrap(), b"1\n2\n3\n");
    mount.sh("{ seq 2; seq 3 4 | cat; } > g");
    assert_eq!(bench.server.get("g").unwrap(), b"1\n2\n3\n4\n");
}

/// exec closes descriptors with its locks held: a mount that asked `/proc` about that process would hang with it,
/// and with them everybody who lists processes.
#[test]
fn descriptors_that_go_with_an_exec_hang_nobody() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let file = std::fs::File::create(mount.path("parent")).unwrap();
    std::io::Write::write_all(&mut &file, b"before\n").unwrap();
    // The child has a copy of the descriptor up to its exec.
    assert!(Command::new("true").status().unwrap().success());
    std::io::Write::write_all(&mut &file, b"after\n").unwrap();
    drop(file);
    assert_eq!(bench.server.get("parent").unwrap(), b"before\nafter\n");
    // The opener itself goes over into another program.
    let script = r#"open(F, ">", "self") or die; syswrite(F, "x\n") or die; exec "true""#;
    let mut child = Command::new("perl").args(["-e", script]).current_dir(mount.path("")).spawn().unwrap();
    assert!(wait_for("the exec ends", || child.try_wait().unwrap()).success());
    wait_until("the file is in the bucket", || bench.server.get("self").is_some_and(|content| content == b"x\n"));
}

/// Starts a writer of half a megabyte that waits when all is written, and kills it.
fn kill_writer(bench: &Bench, mount: &Mount<'_>, redirection: &str, by: libc::c_int) {
    let marker = bench.path("written");
    drop(std::fs::remove_file(&marker));
    bench.file("source", &noise(9, 500 * KIB));
    let script = format!("exec 3{redirection}; cat ../source >&3; : > ../written; exec sleep {}", DEADLINE.as_secs());
    let mut writer = shell(&mount.path(""), &script).spawn().unwrap();
    wait_until("all is written", || marker.exists());
    signal(writer.id(), by);
    writer.wait().unwrap();
    mount.settle();
}

#[test]
fn a_writer_that_is_killed_publishes_nothing_and_its_bytes_are_kept() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("old", b"old\n");
    let mount = bench.mount(&["--part-size", "100KiB"]);
    kill_writer(&bench, &mount, ">new", libc::SIGKILL);
    kill_writer(&bench, &mount, ">old", libc::SIGTERM);
    assert_eq!(bench.server.keys(), ["old"]);
    assert_eq!(bench.server.get("old").unwrap(), b"old\n");
    assert_eq!(mount.sh("cat old; ls"), "old\nold\n", "the mount shows what the bucket has");
    let listed = |kept: Vec<Value>| {
        let mut listed: Vec<_> = kept
            .iter()
            .map(|entry| (entry["key"].as_str().unwrap().to_owned(), entry["state"].clone(), entry["size"].clone()))
            .collect();
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        listed
    };
    let wanted = ["new", "old"].map(|key| (key.to_owned(), "kept".into(), (500 * KIB).into()));
    assert_eq!(listed(bench.recover_list()), wanted);
    assert_eq!(mount.status()["kept"]["files"], 2);
    mount.umount();
    assert_eq!(listed(bench.recover_list()), wanted, "without a mount");
    let _mount = bench.mount(&["--recover", "publish"]);
    assert_eq!(listed(bench.recover_list()), wanted, "only `recover publish` publishes these");
    assert_eq!(bench.server.keys(), ["old"]);
}

#[test]
fn what_a_killed_appender_wrote_is_published() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("log", b"begin\n");
    let mount = bench.mount(&["--part-size", "100KiB"]);
    kill_writer(&bench, &mount, ">>log", libc::SIGKILL);
    let wanted = [b"begin\n".as_slice(), &noise(9, 500 * KIB)].concat();
    assert_same(&bench.server.get("log").unwrap(), &wanted, "log");
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
}

#[test]
fn killed_writers_publish_where_that_is_asked_for() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--part-size", "100KiB", "--on-kill", "publish"]);
    kill_writer(&bench, &mount, ">new", libc::SIGKILL);
    assert_same(&bench.server.get("new").unwrap(), &noise(9, 500 * KIB), "new");
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
}
