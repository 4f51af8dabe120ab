//! What tools keep on files besides their bytes: links, special files, modes, owners, times, extended attributes.
//!
//! Each test looks at the objects as another client sees them, and at the mount anew, with nothing in memory.

use std::ffi::CString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::Value;

use super::harness::{BUCKET, Bench, Server, noise, sh, told, try_sh};

/// An object as another client sees it.
#[track_caller]
fn object(server: &Server, key: &str) -> Value {
    server.objects().into_iter().find(|object| object["key"] == key).unwrap_or_else(|| panic!("no object {key}"))
}

fn meta<'o>(object: &'o Value, name: &str) -> &'o str {
    object["meta"][name].as_str().unwrap_or("-")
}

/// Another client writes an object with headers.
fn put(server: &Server, key: &str, content: &[u8], headers: &[(&str, &str)]) {
    let addr = server.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&addr).unwrap();
    let key = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC);
    let mut head = format!("PUT /_dev/object/{BUCKET}/{key} HTTP/1.0\r\nhost: {addr}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", content.len()));
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(content).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.0 200"), "{reply}");
}

fn c(text: impl AsRef<Path>) -> CString {
    CString::new(text.as_ref().as_os_str().as_bytes()).unwrap()
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> Result<(), i32> {
    let (path, name) = (c(path), c(name));
    // SAFETY: terminated strings, and a buffer of the length told, that live through the call.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    if done == 0 { Ok(()) } else { Err(errno()) }
}

fn get_xattr(path: &Path, name: &str) -> Result<String, i32> {
    let (path, name) = (c(path), c(name));
    let mut buffer = vec![0u8; 65536];
    // SAFETY: terminated strings, and a buffer of the length told, that live through the call.
    let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let len = usize::try_from(len).map_err(|_| errno())?;
    Ok(String::from_utf8(buffer[..len].to_vec()).unwrap())
}

fn remove_xattr(path: &Path, name: &str) -> Result<(), i32> {
    let (path, name) = (c(path), c(name));
    // SAFETY: terminated strings that live through the call.
    let done = unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(errno()) }
}

fn list_xattrs(path: &Path) -> Vec<String> {
    let path = c(path);
    let mut buffer = vec![0u8; 65536];
    // SAFETY: a terminated string, and a buffer of the length told, that live through the call.
    let len = unsafe { libc::listxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let len = usize::try_from(len).unwrap();
    let names = buffer[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect()
}

/// Links of every kind of target: name and target.
const LINKS: [(&str, &str); 5] =
    [("d/up", "../file"), ("abs", "/etc/hostname"), ("dangling", "no/such"), ("täst", "d/ünï çödé"), ("dir", "d")];

fn make_links() -> String {
    let links: Vec<String> = LINKS.iter().map(|(name, target)| format!("ln -s '{target}' '{name}'")).collect();
    format!("mkdir d; echo hello > file; {}", links.join("; "))
}

fn check_links(folder: &Path) {
    for (name, target) in LINKS {
        let size = target.len();
        sh(folder, &format!("test \"$(readlink '{name}')\" = '{target}'; test $(stat -c %s '{name}') = {size}"));
    }
    assert_eq!(sh(folder, "find . -type l | sort"), "./abs\n./d/up\n./dangling\n./dir\n./täst\n");
    assert_eq!(sh(folder, "find . -type f"), "./file\n");
    assert_eq!(sh(folder, "cat d/up dir/../file"), "hello\nhello\n");
}

#[test]
fn links_are_kept_as_ossfs_keeps_them() {
    for (options, in_body) in [(["--symlinks", "ossfs1"], true), (["--symlinks", "meta"], false)] {
        let Some(bench) = Bench::new() else { return };
        let mount = bench.mount_quiet(&options);
        let counts = bench.counting(|| drop(mount.sh(&make_links())));
        assert_eq!(counts.number("PutObject"), 7, "one for each of them: {counts:?}");
        check_links(&mount.path(""));
        for (name, target) in LINKS {
            let link = object(&bench.server, name);
            assert_eq!(meta(&link, "mode"), "41471");
            assert_eq!(bench.server.get(name).unwrap(), if in_body { target.as_bytes() } else { b"" });
            assert_eq!(meta(&link, "symlink-target") == "-", in_body);
        }
        if !in_body {
            assert_eq!(meta(&object(&bench.server, "d/up"), "symlink-target"), "header:7:../file");
        }
        mount.umount();
        // Nothing in memory, and a directory that is listed before anything in it was looked at.
        let mount = bench.mount(&[]);
        check_links(&mount.path(""));
        let again = mount.try_sh("ln -s x abs");
        assert!(told(&again).contains("File exists"), "{}", told(&again));
        mount.sh("mv abs d/abs; test $(readlink d/abs) = /etc/hostname; mv -T d/abs dangling; mv file dir/file");
        assert_eq!(mount.sh("readlink dangling"), "/etc/hostname\n");
        mount.sh(
            "touch -h -d @12345 dangling; chown -h 7:8 dangling; test \"$(stat -c '%Y %u %g' dangling)\" = '12345 7 8'",
        );
        mount.sh("test $(readlink dangling) = /etc/hostname; rm -r d dir dangling täst; test -z \"$(ls -A)\"");
        assert_eq!(bench.server.keys(), [""; 0]);
    }
}

#[test]
fn links_of_the_service_are_read_and_written() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("p/other", b"other");
    let place = format!("{BUCKET}:p");
    let mount = bench.mount_at(&place, "native", &["--symlinks", "native"]);
    mount.sh(
        "mkdir -p a/b; echo hello > file; ln -s ../../file a/b/up; ln -s none dangling; ln -s a/ dir; ln -s a/b/up two",
    );
    for outside in ["/etc/hostname", "../x", "a/../../x"] {
        let refused = mount.try_sh(&format!("ln -s {outside} bad"));
        assert!(told(&refused).contains("Invalid argument"), "{}", told(&refused));
    }
    let link = object(&bench.server, "p/a/b/up");
    assert_eq!((link["type"].as_str(), link["symlink_target"].as_str()), (Some("Symlink"), Some("p/file")));
    assert_eq!(object(&bench.server, "p/dir")["symlink_target"], "p/a/");
    mount.umount();
    // A mount of the whole bucket says the way from its own root.
    let whole = bench.mount(&[]);
    whole.sh("test $(readlink p/a/b/up) = ../../../p/file; test $(stat -c %s p/a/b/up) = 15; cat p/a/b/up");
    whole.umount();
    for options in [["--metadata", "posix"], ["--metadata", "plain"]] {
        let other = bench.mount_at(&place, "native", &options);
        let check = "test $(readlink a/b/up) = ../../file; test $(stat -c %s a/b/up) = 10; test $(readlink dir) = a/
            test $(readlink dangling) = none; test \"$(stat -c %F dangling)\" = 'symbolic link'; cat a/b/up dir/b/up";
        for round in ["cold", "listed"] {
            assert_eq!(other.sh(check), "hello\nhello\n", "{round}, {options:?}");
            other.sh("ls -lR > /dev/null");
        }
        assert_eq!(other.sh("find . -type l | sort"), "./a/b/up\n./dangling\n./dir\n./two\n");
        other.umount();
    }
    let mount = bench.mount_at(&place, "native", &[]);
    mount.sh("mv a/b/up up; test $(readlink up) = file; test $(stat -c %s up) = 4; cat up");
    mount.sh("touch -h -d @999 up; test $(stat -c %Y up) = 999; test $(readlink up) = file");
    assert_eq!(object(&bench.server, "p/up")["symlink_target"], "p/file");
    mount.sh("mv -T other up; test \"$(cat up)\" = other; rm dangling dir two up; test -e file");
    assert_eq!(bench.server.keys(), ["p/a/", "p/a/b/", "p/file"]);
}

#[test]
fn without_metadata_only_links_of_the_service_are_kept() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--metadata", "plain"]);
    for refused in ["ln -s x y", "mkfifo y", "chmod 600 f"] {
        let output = try_sh(&mount.path(""), &format!("echo > f; {refused}"));
        assert!(told(&output).contains("not permitted"), "{refused}: {}", told(&output));
    }
    mount.umount();
    let mount = bench.mount(&["--metadata", "plain", "--symlinks", "native"]);
    mount.sh("ln -s f y; test $(readlink y) = f; test $(stat -c %s y) = 1");
}

#[test]
fn objects_of_other_clients_are_what_their_metadata_say() {
    let Some(bench) = Bench::new() else { return };
    let server = &bench.server;
    put(server, "body", b"../over/there", &[("x-oss-meta-mode", "41471")]);
    put(server, "bare", b"", &[("x-oss-meta-mode", "511"), ("x-oss-meta-symlink-target", "header:5:a%20b/c")]);
    put(server, "octal", b"x", &[("x-oss-meta-mode", "0600"), ("x-oss-meta-mtime", "5.5")]);
    put(server, "bits", b"x", &[("x-oss-meta-mode", "384"), ("x-oss-meta-uid", "12"), ("x-oss-meta-gid", "13")]);
    put(server, "fifo", b"", &[("x-oss-meta-mode", "4516")]);
    put(server, "old", b"", &[("content-type", "application/x-directory")]);
    put(server, "old/x", b"x", &[]);
    put(server, "hadoop_$folder$", b"", &[]);
    put(server, "hadoop/x", b"x", &[]);
    put(server, "empty_$folder$", b"", &[]);
    put(server, "too-long", &[b'x'; 5000], &[("x-oss-meta-mode", "41471")]);
    let mount = bench.mount(&[]);
    assert_eq!(mount.sh("ls"), "bare\nbits\nbody\nempty\nfifo\nhadoop\noctal\nold\ntoo-long\n", "each under one name");
    assert_eq!(mount.sh("find . -type d | sort"), ".\n./empty\n./hadoop\n./old\n");
    assert_eq!(mount.sh("find . -type l | sort; find . -type p"), "./bare\n./body\n./fifo\n");
    assert_eq!(mount.sh("readlink body bare; stat -c %s body bare"), "../over/there\na b/c\n13\n5\n");
    assert_eq!(mount.sh("stat -c '%a %.1Y' octal; stat -c '%a %u %g' bits"), "600 5.5\n600 12 13\n");
    assert_eq!(mount.sh("stat -c '%F %s' too-long old"), "regular file 5000\ndirectory 4096\n");
    mount.sh("rmdir empty; rm -r hadoop; ls");
    assert!(!server.keys().iter().any(|key| key.contains("$folder$")), "{:?}", server.keys());
}

#[test]
fn special_files_are_kept_as_metadata() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("mkfifo -m 640 fifo; mknod -m 600 char c 1 300; mknod block b 259 7");
    let socket = std::os::unix::net::UnixListener::bind(mount.path("socket")).unwrap();
    drop(socket);
    assert_eq!(meta(&object(&bench.server, "fifo"), "mode"), "4512");
    assert_eq!(meta(&object(&bench.server, "char"), "mode"), "8576");
    mount.umount();
    let mount = bench.mount(&[]);
    assert_eq!(
        mount.sh("stat -c '%n %F %a %t:%T' fifo char block socket | cut -d' ' -f1-6"),
        "fifo fifo 640 0:0\nchar character special file 600 1:12c\nblock block special file 644 103:7\nsocket socket 755 0:0\n"
    );
    // What goes through a fifo never leaves the machine.
    assert_eq!(mount.sh("(echo through > fifo) & cat fifo; wait"), "through\n");
    mount.sh("chmod 600 fifo; mv fifo pipe; test $(stat -c '%F%a' pipe) = fifo600; rm pipe char block socket");
    assert_eq!(bench.server.keys(), [""; 0]);
}

/// A tree with everything that archives keep.
fn make_tree(tree: &Path) {
    sh(
        tree,
        "mkdir -p sub/deep; seq 100 > a; seq 20000 > sub/b; : > sub/empty; ln -s ../a sub/link; ln -s /abs/olute sub/deep/abs
        mkfifo sub/fifo; touch -h -d @1000000001.25 sub/fifo sub/deep/abs sub/empty sub/b; chmod 751 sub; chmod 4711 a; chmod 600 sub/b; chown 5:6 sub/b
        touch -d '2001-02-03 04:05:06.789012345Z' a; touch -h -d @77 sub/link; touch -d @1000000007.5 sub/deep sub",
    );
}

const SHOW: &str = "find . -mindepth 1 -printf '%P %y %m %U %G %T@ %l\\n' | sort";

#[test]
fn archives_and_copies_keep_everything() {
    let Some(bench) = Bench::new() else { return };
    let tree = bench.folder("tree");
    make_tree(&tree);
    let wanted = sh(&tree, SHOW);
    let mount = bench.mount(&[]);
    mount.sh("cp -a ../tree copied; mkdir untarred; tar -C ../tree --format=posix -cf - . | tar -C untarred -xpf -");
    mount.sh("tar -C ../tree --format=posix -cf packed.tar .");
    mount.umount();
    let mount = bench.mount(&[]);
    for place in ["copied", "untarred"] {
        assert_eq!(sh(&mount.path(place), SHOW), wanted, "{place}");
        sh(&mount.path(place), "cmp a ../../tree/a; cmp sub/b ../../tree/sub/b");
    }
    sh(&bench.path(""), "cp -a mnt/copied out; mkdir unpacked; tar -C unpacked -xpf mnt/packed.tar");
    assert_eq!(sh(&bench.path("out"), SHOW), wanted);
    assert_eq!(sh(&bench.path("unpacked"), SHOW), wanted);
}

#[test]
fn rsync_has_nothing_to_do_the_second_time() {
    let Some(bench) = Bench::new() else { return };
    let tree = bench.folder("tree");
    make_tree(&tree);
    let mount = bench.mount(&[]);
    assert!(!mount.sh("rsync -aX --specials --out-format=%n ../tree/ .").is_empty());
    let counts = bench.counting(|| {
        assert_eq!(mount.sh("rsync -aX --specials --out-format=%n ../tree/ ."), "");
    });
    assert_eq!(counts.number("PutObject") + counts.number("CopyObject"), 0, "{counts:?}");
    mount.umount();
    let mount = bench.mount(&[]);
    // The times of the root are kept by no object.
    assert_eq!(mount.sh("rsync -aX --specials --out-format=%n ../tree/ . | grep -v '^./$' || true"), "");
    assert_eq!(sh(&mount.path(""), SHOW), sh(&tree, SHOW));
}

#[test]
fn git_keeps_its_links() {
    let Some(bench) = Bench::new() else { return };
    let source = bench.folder("source");
    sh(
        &source,
        "git init -q . && git config user.email a@b && git config user.name n && mkdir d && echo x > d/f &&
        ln -s d/f link && chmod +x d/f && git add . && git commit -qm one",
    );
    let mount = bench.mount(&[]);
    mount.sh("git -c safe.directory='*' clone -q ../source clone");
    mount.umount();
    let mount = bench.mount(&[]);
    let status = sh(
        &mount.path("clone"),
        "git -c safe.directory='*' status --porcelain; git fsck 2>&1 | grep -v ^Checking || true",
    );
    assert_eq!(status, "", "nothing differs");
    assert_eq!(sh(&mount.path("clone"), "readlink link; cat link; test -x d/f"), "d/f\nx\n");
}

#[test]
fn extended_attributes_are_kept_as_ossfs_keeps_them() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("echo x > f; mkdir d");
    let f = mount.path("f");
    assert_eq!(get_xattr(&f, "user.k"), Err(libc::ENODATA));
    assert_eq!(set_xattr(&f, "user.k", b"v", libc::XATTR_REPLACE), Err(libc::ENODATA));
    set_xattr(&f, "user.k", b"v", libc::XATTR_CREATE).unwrap();
    mount.settle();
    assert_eq!(meta(&object(&bench.server, "f"), "xattr"), "%7B%22user.k%22%3A%22dg%3D%3D%22%7D");
    assert_eq!(set_xattr(&f, "user.k", b"v", libc::XATTR_CREATE), Err(libc::EEXIST));
    set_xattr(&f, "user.a,b:\"c\"", "wörth".as_bytes(), 0).unwrap();
    set_xattr(&f, "user.empty", b"", 0).unwrap();
    set_xattr(&f, "user.k", b"w", libc::XATTR_REPLACE).unwrap();
    set_xattr(&mount.path("d"), "user.dir", b"1", 0).unwrap();
    assert_eq!(set_xattr(&f, "user.big", &[b'x'; 8000], 0), Err(libc::ENOSPC));
    for refused in ["security.x", "system.posix_acl_access", "system.x"] {
        assert!(matches!(set_xattr(&f, refused, b"v", 0), Err(libc::EOPNOTSUPP | libc::EINVAL)), "{refused}");
    }
    // An open file has them too, and they ride along.
    mount.sh(
        "exec 3> open; setfattr -n user.o -v 1 open; echo data >&3; test $(getfattr --only-values -n user.o open) = 1",
    );
    mount.sh("echo more >> f; chmod 600 f; mv f g");
    mount.umount();
    let mount = bench.mount(&[]);
    let g = mount.path("g");
    assert_eq!(list_xattrs(&g), ["user.a,b:\"c\"", "user.empty", "user.k"]);
    assert_eq!(get_xattr(&g, "user.a,b:\"c\"").as_deref(), Ok("wörth"));
    assert_eq!(get_xattr(&g, "user.k").as_deref(), Ok("w"));
    assert_eq!(get_xattr(&mount.path("d"), "user.dir").as_deref(), Ok("1"));
    assert_eq!(get_xattr(&mount.path("open"), "user.o").as_deref(), Ok("1"));
    for name in ["user.a,b:\"c\"", "user.empty", "user.k"] {
        remove_xattr(&g, name).unwrap();
    }
    assert_eq!(remove_xattr(&g, "user.k"), Err(libc::ENODATA));
    mount.settle();
    assert_eq!(meta(&object(&bench.server, "g"), "xattr"), "-");
}

#[test]
fn the_mount_tells_what_it_knows_of_a_file() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("mkdir d; echo x > d/f");
    let f = mount.path("d/f");
    let own = |name: &str| get_xattr(&f, &format!("user.ossfuse.{name}")).unwrap();
    let known = object(&bench.server, "d/f");
    assert_eq!(own("etag"), known["etag"].as_str().unwrap());
    assert_eq!(own("crc64"), known["crc64"].as_str().unwrap());
    assert_eq!((own("storage-class"), own("key"), own("state")), ("Standard".into(), "d/f".into(), "clean".into()));
    assert_eq!(own("url"), format!("{}/{BUCKET}/d/f", bench.server.url()));
    assert_eq!(list_xattrs(&f), [""; 0], "so that copying tools pass them over");
    assert_eq!(set_xattr(&f, "user.ossfuse.state", b"x", 0), Err(libc::EPERM));
    assert_eq!(get_xattr(&f, "user.ossfuse.other"), Err(libc::ENODATA));
    let open = std::fs::File::options().append(true).open(&f).unwrap();
    (&open).write_all(b"more").unwrap();
    assert_eq!(own("state"), "dirty");
    drop(open);
    assert_eq!(own("state"), "clean");
}

#[test]
fn foreign_metadata_survive_every_change() {
    let headers = [
        ("content-type", "text/x-special"),
        ("cache-control", "max-age=5"),
        ("content-disposition", "attachment"),
        ("content-encoding", "identity"),
        ("x-oss-meta-author", "somebody"),
    ];
    for (mode, changes) in [
        (
            "posix",
            &["chmod 600 f", "touch f", "echo new > f", "echo more >> f", "truncate -s 2 f", "cp g f", "chown 3 f"][..],
        ),
        ("plain", &["echo new > f", "echo more >> f", "truncate -s 2 f", "cp g f", "ls -l >/dev/null; echo 1 > f"][..]),
    ] {
        let Some(bench) = Bench::new() else { return };
        put(&bench.server, "f", b"content", &headers);
        bench.server.put("g", &noise(1, 5000));
        let mount = bench.mount(&["--metadata", mode]);
        let check = |key: &str, change: &str| {
            let object = object(&bench.server, key);
            assert_eq!(object["headers"]["content-type"], "text/x-special", "{mode}: {change}");
            assert_eq!(object["headers"]["cache-control"], "max-age=5", "{mode}: {change}");
            assert_eq!(object["headers"]["content-disposition"], "attachment", "{mode}: {change}");
            assert_eq!(object["headers"]["content-encoding"], "identity", "{mode}: {change}");
            assert_eq!(meta(&object, "author"), "somebody", "{mode}: {change}");
        };
        for change in changes {
            mount.sh(change);
            check("f", change);
        }
        mount.sh("mv f h");
        check("h", "mv");
    }
}

#[test]
fn attributes_of_finished_files_cost_few_requests() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount_quiet(&[]);
    mount.sh("echo x > f; mkdir d");
    let counts = bench.counting(|| drop(mount.sh("chmod 640 f; touch f")));
    assert!(counts.total() <= 4, "{counts:?}");
    assert_eq!(mount.sh("stat -c '%a %s' d f"), "755 4096\n640 2\n");
    let source = bench.file("source", b"bytes");
    let copied = bench.counting(|| drop(mount.sh(&format!("cp -p {} copy", source.display()))));
    assert_eq!(copied.all(), [("PutObject", 1)]);
    bench.server.put("implied/x", b"x");
    mount.umount();
    let mount = bench.mount(&[]);
    mount.sh("chmod 700 implied; touch -d @5 implied; stat -c %s implied");
    assert_eq!(meta(&object(&bench.server, "implied/"), "mode"), "16832");
    assert_eq!(meta(&object(&bench.server, "implied/"), "mtime"), "5");
}

#[test]
fn privileges_go_when_a_file_or_its_owner_changes() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("echo x > f; chmod 6755 f; test $(stat -c %a f) = 6755; chown 1:1 f; test $(stat -c %a f) = 755");
    mount.sh("chmod 4711 f; truncate -s 0 f; test $(stat -c %a f) = 711");
    assert_eq!(meta(&object(&bench.server, "f"), "mode"), "33225");
}
