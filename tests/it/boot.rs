//! What mounts at boot: mount(8) and umount(8) with the helpers, an fstab, the units, and the installation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::harness::{BUCKET, Bench, is_mounted, is_root, sh, show_real_helpers, told, wait_until};

/// Has mount(8) find our helpers: in the mounts of this test alone, `/usr/sbin` has them too.
fn install_helpers(bench: &Bench) {
    let fake = bench.folder("sbin");
    show_real_helpers();
    let script = format!(
        "for file in /run/sbin-real/*; do ln -s \"$file\" {fake}/; done; \
         ln -sf {program} {fake}/mount.ossfuse; ln -sf {program} {fake}/umount.fuse.ossfuse; \
         mount --bind {fake} /usr/sbin",
        fake = fake.display(),
        program = env!("CARGO_BIN_EXE_ossfuse"),
    );
    sh(&bench.path(""), &script);
}

/// A command in the environment of `ossfuse`.
fn run(bench: &Bench, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    let own = bench.ossfuse([""; 0]);
    command.env_clear().envs(own.get_envs().filter_map(|(name, value)| Some((name, value?)))).args(arguments);
    command.output().unwrap()
}

fn options(bench: &Bench) -> String {
    let state = bench.path("state").display().to_string();
    format!("endpoint={},region=cn-hangzhou,state_dir={state}", bench.server.url())
}

/// Source, type and options of what is mounted at a path.
fn mounted(path: &Path) -> Vec<(String, String, String)> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let here = table.lines().filter(|line| line.split(' ').nth(4) == path.to_str());
    here.map(|line| {
        let (front, back) = line.split_once(" - ").unwrap();
        let mut back = back.split(' ');
        let (kind, source) = (back.next().unwrap().to_owned(), back.next().unwrap().to_owned());
        (source, kind, front.split(' ').nth(5).unwrap().to_owned())
    })
    .collect()
}

#[test]
fn an_fstab_line_mounts_once_and_umount_drains() {
    let Some(bench) = Bench::new() else { return };
    if !is_root() {
        return println!("skipped: only root mounts by fstab");
    }
    install_helpers(&bench);
    let place = bench.folder("mnt");
    let generic = "defaults,_netdev,nofail,x-systemd.automount,noatime,noexec,uid=7,allow_other";
    let line = format!("{BUCKET}:/some ossfuse-place ossfuse {generic},{} 0 0\n", options(&bench));
    let fstab = bench.file("fstab", line.replace("ossfuse-place", place.to_str().unwrap()).as_bytes());
    for _ in 0..2 {
        let output = run(&bench, "mount", &["-a", "-T", fstab.to_str().unwrap()]);
        assert!(output.status.success(), "{}", told(&output));
        let found = mounted(&place);
        assert_eq!(found.len(), 1, "{found:?}");
        let (source, kind, flags) = &found[0];
        assert_eq!((source.as_str(), kind.as_str()), (&*format!("{BUCKET}:/some"), "fuse.ossfuse"));
        assert!(flags.contains("noatime") && flags.contains("noexec") && flags.contains("nosuid"), "{flags}");
    }
    fs::write(place.join("f"), "content").unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(&place).unwrap()), 7);
    let output = run(&bench, "umount", &[place.to_str().unwrap()]);
    assert!(output.status.success(), "{}", told(&output));
    assert!(!is_mounted(&place));
    assert_eq!(bench.server.get("some/f").unwrap(), b"content");
}

#[test]
fn the_helper_speaks_the_language_of_mount() {
    let Some(bench) = Bench::new() else { return };
    let helper = bench.path("mount.ossfuse");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ossfuse"), &helper).unwrap();
    let helper = helper.to_str().unwrap();
    let place = bench.folder("mnt");
    let (place, options) = (place.to_str().unwrap(), options(&bench));
    let fake = run(&bench, helper, &[BUCKET, place, "-f", "-o", &options]);
    assert!(fake.status.success(), "{}", told(&fake));
    assert!(!is_mounted(Path::new(place)), "-f is fake");
    let missing = run(&bench, helper, &["no-such-bucket", place, "-o", &options]);
    assert_eq!(missing.status.code(), Some(32), "{}", told(&missing));
    let unknown = format!("{options},frobnicate=1");
    let refused = run(&bench, helper, &[BUCKET, place, "-o", &unknown]);
    assert_eq!(refused.status.code(), Some(32), "{}", told(&refused));
    assert!(told(&refused).contains("frobnicate"), "{}", told(&refused));
    let done = run(&bench, helper, &[BUCKET, place, "-snv", "-t", "ossfuse", "-o", &format!("ro,{unknown}")]);
    assert!(done.status.success(), "{}", told(&done));
    assert_eq!(fs::write(Path::new(place).join("f"), "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
    let output = bench.ossfuse(["umount", place]).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
}

fn install(bench: &Bench, arguments: &[&str]) -> Output {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/install");
    let mut command = Command::new(script);
    command.env("OSSFUSE_BIN", env!("CARGO_BIN_EXE_ossfuse")).arg("--prefix").arg(bench.path("prefix"));
    command.args(arguments).output().unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn what_is_installed_is_whole_and_goes_away_again() {
    let Some(bench) = Bench::new() else { return };
    let prefix = bench.path("prefix");
    for _ in 0..2 {
        let output = install(&bench, &[]);
        assert!(output.status.success(), "{}", told(&output));
    }
    for name in [
        "bin/ossfuse",
        "sbin/mount.ossfuse",
        "sbin/umount.fuse.ossfuse",
        "lib/systemd/system/ossfuse@.service",
        "share/man/man1/ossfuse.1",
        "share/man/man1/ossfuse-mount.1",
        "share/man/man1/ossfuse-recover-publish.1",
        "share/bash-completion/completions/ossfuse",
        "share/zsh/site-functions/_ossfuse",
        "share/fish/vendor_completions.d/ossfuse.fish",
    ] {
        let path = prefix.join(name);
        assert!(path.metadata().is_ok_and(|metadata| metadata.len() > 0), "{name}");
    }
    let page = fs::read_to_string(prefix.join("share/man/man1/ossfuse-mount.1")).unwrap();
    assert!(page.contains("part\\-size"), "{page}");
    let unit = prefix.join("lib/systemd/system/ossfuse@.service");
    assert!(fs::read_to_string(&unit).unwrap().contains(&format!("{}/bin/ossfuse mount", prefix.display())));
    verify_units(&[unit.with_file_name("ossfuse@photos.service"), unit]);
    let output = install(&bench, &["--uninstall"]);
    assert!(output.status.success(), "{}", told(&output));
    assert!(files(&prefix).is_empty(), "{:?}", files(&prefix));
}

/// Has systemd read the units, where it is there; the first path is the instance of the second.
fn verify_units(paths: &[PathBuf; 2]) {
    let scripts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd");
    fs::copy(&paths[1], &paths[0]).unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&paths[0]);
    command.args([scripts.join("mnt-oss.mount"), scripts.join("mnt-oss.automount")]);
    match command.output() {
        Ok(output) => assert!(output.status.success(), "{}", told(&output)),
        Err(_) => println!("skipped: systemd-analyze is not there"),
    }
    fs::remove_file(&paths[0]).unwrap();
}

/// A server that speaks TLS, and its endpoint.
fn tls_server(bench: &Bench) -> (std::process::Child, String) {
    use std::io::BufRead;
    let data = bench.path("tls");
    let mut command = bench.ossfuse(["dev-server", "--tls", "--listen", "127.0.0.1:0", "--bucket", BUCKET, "--data"]);
    super::harness::end_with_parent(&mut command);
    let mut child = command.arg(data).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("listening ").unwrap().to_owned();
    assert!(url.starts_with("https://"), "{url}");
    (child, url)
}

fn tls_mount(bench: &Bench, url: &str, place: &Path) -> Command {
    let mut command = bench.ossfuse(["mount", BUCKET]);
    command.arg(place).args(["--endpoint", url, "--region", "cn-hangzhou", "--state-dir"]).arg(bench.path("state"));
    command.args(["--mount-timeout", "10s"]);
    command
}

fn mount_over_tls(bench: &Bench, url: &str, place: &Path, extra: &[&str]) -> Output {
    tls_mount(bench, url, place).args(extra).output().unwrap()
}

/// A certificate that has run out, and one for another name, both of an authority that is trusted.
#[test]
fn expired_and_misnamed_certificates_are_told_apart() {
    let Some(bench) = Bench::new() else { return };
    for (name, last_year, wanted) in [("127.0.0.1", 2021, "expired"), ("other.example", 2100, "other.example")] {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let folder = bench.folder("tls");
        fs::write(folder.join("tls-cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(folder.join("tls-key.pem"), key.serialize_pem()).unwrap();
        let (mut server, url) = tls_server(&bench);
        let authority = folder.join("tls-cert.pem");
        let extra = ["--ca-file", authority.to_str().unwrap()];
        let refused = mount_over_tls(&bench, &url, &bench.folder("mnt"), &extra);
        server.kill().unwrap();
        server.wait().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
        let said = told(&refused);
        assert!(said.contains("certificate") && said.contains(wanted), "{said}");
        fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn a_bucket_is_mounted_over_tls_and_bad_certificates_are_named() {
    let Some(bench) = Bench::new() else { return };
    let (mut server, url) = tls_server(&bench);
    let place = bench.folder("mnt");
    let mount = |extra: &[&str]| mount_over_tls(&bench, &url, &place, extra);
    let foreign = mount(&[]);
    assert_eq!(foreign.status.code(), Some(1), "{}", told(&foreign));
    let said = told(&foreign);
    assert!(said.contains("certificate") && said.contains("--ca-file"), "{said}");
    let authority = bench.path("tls/tls-cert.pem");
    let authority = authority.to_str().unwrap();
    let unreadable = mount(&["--ca-file", "/nonexistent.pem"]);
    assert!(told(&unreadable).contains("see --ca-file"), "{}", told(&unreadable));
    let content = super::harness::noise(9, 3 << 20);
    // By what is said, and by what the machine trusts.
    for named in [true, false] {
        let mounted = if named {
            mount(&["--ca-file", authority, "--part-size", "1MiB"])
        } else {
            tls_mount(&bench, &url, &place).env("SSL_CERT_FILE", authority).output().unwrap()
        };
        assert!(mounted.status.success(), "{}", told(&mounted));
        if !place.join("f").exists() {
            fs::write(place.join("f"), &content).unwrap();
        }
        super::harness::assert_same(&fs::read(place.join("f")).unwrap(), &content, "over TLS");
        let output = bench.ossfuse(["umount"]).arg(&place).output().unwrap();
        assert!(output.status.success(), "{}", told(&output));
    }
    server.kill().unwrap();
    server.wait().unwrap();
    wait_until("it is unmounted", || !is_mounted(&place));
}
