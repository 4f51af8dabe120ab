//! Names: any UTF-8 of up to 255 bytes is a file, any other is refused with the errno that says why.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use serde_json::json;

use super::harness::{Bench, wait_until};

/// Names that a shell, a URL or an XML document could stumble over.
fn odd_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "with blank",
        " first",
        "last ",
        "ünïcödé",
        "日本語",
        "🦀",
        "a+b",
        "100%",
        "%41",
        "%2F",
        "#1",
        "what?",
        "a?b=c&d",
        "'single'",
        "\"double\"",
        "back\\slash",
        "<tag>&amp;",
        "semi;colon",
        "tab\there",
        "line\nbreak",
        "-dash",
        "~tilde",
        "a:b",
        "*",
        "...",
        ".hidden",
        "e\u{301}",
        "a=b",
        "a,b",
        "$HOME",
        "`id`",
        "(x)",
        "[x]",
        "{x}",
        "|",
        "\u{7f}",
    ]
    .map(str::to_owned)
    .into();
    names.push("n".repeat(255));
    names.push("ß".repeat(127));
    names
}

#[test]
fn odd_names_are_kept_as_they_are() {
    let Some(bench) = Bench::new() else { return };
    let names = odd_names();
    let mount = bench.mount(&[]);
    fs::create_dir(mount.path("d")).unwrap();
    for (number, name) in names.iter().enumerate() {
        let path = mount.path("d").join(name);
        fs::write(&path, number.to_string()).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        assert_eq!(bench.server.get(&format!("d/{name}")).as_deref(), Some(number.to_string().as_bytes()), "{name:?}");
    }
    mount.umount();
    let mount = bench.mount(&[]);
    let mut listed: Vec<String> =
        fs::read_dir(mount.path("d")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    listed.sort();
    let mut wanted = names.clone();
    wanted.sort();
    assert_eq!(listed, wanted);
    for (number, name) in names.iter().enumerate() {
        let path = mount.path("d").join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), number.to_string(), "{name:?}");
        fs::rename(&path, mount.path("moved")).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        fs::rename(mount.path("moved"), &path).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        fs::remove_file(&path).unwrap_or_else(|error| panic!("{name:?}: {error}"));
    }
    assert_eq!(bench.server.keys(), ["d/"]);
}

#[test]
fn odd_names_are_directories_too() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    for name in odd_names() {
        let dir = mount.path(&name);
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        fs::write(dir.join("f"), &name).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        assert_eq!(bench.server.get(&format!("{name}/f")).as_deref(), Some(name.as_bytes()), "{name:?}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "{name:?}");
        fs::remove_dir_all(&dir).unwrap_or_else(|error| panic!("{name:?}: {error}"));
    }
    assert_eq!(bench.server.keys(), [""; 0]);
}

#[test]
fn names_that_cannot_be_are_refused() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("there", b"");
    let mount = bench.mount(&[]);
    let errno = |name: &OsStr| {
        let path = mount.path("").join(name);
        let results = [
            fs::write(&path, "x").unwrap_err(),
            fs::create_dir(&path).unwrap_err(),
            fs::rename(mount.path("there"), &path).unwrap_err(),
        ];
        results.map(|error| error.raw_os_error())
    };
    let long = "n".repeat(256);
    assert_eq!(errno(OsStr::new(&long)), [Some(libc::ENAMETOOLONG); 3]);
    let wide = "ß".repeat(128);
    assert_eq!(errno(OsStr::new(&wide)), [Some(libc::ENAMETOOLONG); 3]);
    assert_eq!(errno(OsStr::from_bytes(b"latin1-\xe9")), [Some(libc::EILSEQ); 3]);
    assert_eq!(errno(OsStr::new("\\first")), [Some(libc::EINVAL); 3]);
    assert_eq!(bench.server.keys(), ["there"]);
}

#[test]
fn a_key_over_its_length_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let name = "n".repeat(250);
    let deep = mount.path(&format!("{name}/{name}/{name}/{name}"));
    fs::create_dir_all(&deep).unwrap();
    // 4 * 251 = 1004 bytes before the name.
    fs::write(deep.join("m".repeat(19)), "fits").unwrap();
    let error = fs::write(deep.join("m".repeat(20)), "does not").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    let long = bench.server.keys().iter().map(String::len).max();
    assert_eq!(long, Some(1023));
}

#[test]
fn keys_that_no_path_can_carry_are_hidden_and_counted() {
    let Some(bench) = Bench::new() else { return };
    for key in ["a//b", "d/../e", "d/./f", "good", "d/good", "dir/x", "dir", &format!("{}/x", "n".repeat(256))] {
        bench.server.put(key, key.as_bytes());
    }
    let mount = bench.mount(&[]);
    assert_eq!(mount.sh("find . | sort"), ".\n./a\n./d\n./d/good\n./dir\n./dir/x\n./good\n");
    assert_eq!(mount.sh("cat good d/good dir/x"), "goodd/gooddir/x");
    wait_until("hidden keys are counted", || mount.status()["hidden_keys"].as_u64() >= Some(5));
    assert_eq!(bench.server.keys().len(), 8, "nothing was touched");
}

/// An entry that cannot be looked at just now makes the listing fail: left out, it would pass for gone.
#[test]
fn an_entry_that_cannot_be_looked_at_is_not_left_out() {
    let Some(bench) = Bench::new() else { return };
    for key in ["a", "b", "c"] {
        bench.server.put(key, b"x");
    }
    let mount = bench.mount(&["--metadata", "plain", "--list-ttl", "0s", "--attr-ttl", "0s"]);
    assert_eq!(mount.sh("ls"), "a\nb\nc\n");
    bench
        .server
        .faults(&json!([{"operation": "HeadObject", "key": "b", "action": {"status": 403, "code": "AccessDenied"}}]));
    let listed: Result<Vec<_>, _> = fs::read_dir(mount.path("")).unwrap().collect();
    match listed {
        Ok(all) => assert_eq!(all.len(), 3, "all of it, where the kernel asks for no attributes"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EACCES)),
    }
    bench.server.clear_faults();
    assert_eq!(mount.sh("ls"), "a\nb\nc\n");
}
