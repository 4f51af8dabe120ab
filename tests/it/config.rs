//! The configuration as a user meets it: where a value comes from, what a mistake is told, no secret shown.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use super::harness::{BUCKET, Bench, Mount, told};

fn show(bench: &Bench, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = bench.ossfuse(["mount", "--show-config"]);
    command.args(arguments).envs(variables.iter().copied()).output().unwrap()
}

/// The line of an option, its columns apart.
#[track_caller]
fn line(output: &Output, option: &str) -> String {
    assert!(output.status.success(), "{}", told(output));
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(option));
    line.unwrap_or_else(|| panic!("{text}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn each_value_comes_from_the_source_that_goes_first() {
    let Some(bench) = Bench::new() else { return };
    let config = bench.file(
        "config.toml",
        b"upload-workers = 1\npart-size = '1MiB'\nlog-level = 'warn'\nfsync = 'remote'\n\
        access-key-secret = 'hush'\naccess-key-id = 'id'\n[profile.p]\nlog-level = 'debug'\n",
    );
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let config = config.to_str().unwrap();
    let arguments =
        ["--config", config, "--profile", "p", "-o", "part_size=3MiB,upload_workers=3", "--part-size", "4MiB"];
    let variables = [("OSSFUSE_PART_SIZE", "2MiB"), ("OSSFUSE_FSYNC", "local"), ("OSSFUSE_PART_SISE", "1")];
    let shown = show(&bench, &arguments, &variables);
    assert_eq!(line(&shown, "part-size"), "part-size 4MiB flag --part-size");
    assert_eq!(line(&shown, "upload-workers"), "upload-workers 3 -o");
    assert_eq!(line(&shown, "fsync"), "fsync local environment OSSFUSE_FSYNC");
    assert_eq!(line(&shown, "log-level"), format!("log-level debug {config} [profile.p]"));
    assert_eq!(line(&shown, "on-kill"), "on-kill keep default");
    assert_eq!(line(&shown, "access-key-secret"), "access-key-secret *** environment OSS_ACCESS_KEY_SECRET");
    let said = told(&shown);
    assert!(!said.contains("hush") && !said.contains("test-sk"), "{said}");
    assert!(said.contains("warning: OSSFUSE_PART_SISE: there is no such option; did you mean OSSFUSE_PART_SIZE?"));
    let with_place = show(&bench, &[BUCKET, "/mnt", "--region", "cn-hangzhou"], &[]);
    let wanted = "endpoint https://oss-cn-hangzhou.aliyuncs.com follows from region";
    assert_eq!(line(&with_place, "endpoint"), wanted);
}

#[test]
fn a_file_with_a_secret_that_others_can_read_is_refused() {
    let Some(bench) = Bench::new() else { return };
    bench.folder("mnt");
    let config = bench.file("config.toml", b"access-key-id = 'test-ak'\naccess-key-secret = 'test-sk'\n");
    let config = config.to_str().unwrap();
    for (mode, ok) in [(0o644, false), (0o600, true)] {
        fs::set_permissions(config, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = Mount::command(&bench, BUCKET, &bench.path("mnt"), &["--config", config]);
        let output = command.env_remove("OSS_ACCESS_KEY_ID").env_remove("OSS_ACCESS_KEY_SECRET").output().unwrap();
        assert_eq!(output.status.success(), ok, "{}", told(&output));
        if !ok {
            assert!(told(&output).contains("others can read it; run `chmod 600 "), "{}", told(&output));
        }
    }
    let output = bench.ossfuse(["umount"]).arg(bench.path("mnt")).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
}

#[test]
fn a_config_file_can_be_checked() {
    let Some(bench) = Bench::new() else { return };
    for (text, ok, word) in [
        ("region = 'cn-hangzhou'\n[profile.p]\npart-size = '16MiB'\n", true, ": ok"),
        ("regio = 'x'\n", false, "did you mean region?"),
        ("[profile.p]\npart-size = '1 parsec'\n", false, "part-size in [profile.p]"),
        ("upload-workers = 0\n", false, "out of bounds"),
        ("region = 'cn-hangzhou'\nendpoint = 'https://oss-cn-beijing.aliyuncs.com'\n", false, "not in cn-hangzhou"),
        ("log-level = 'deebug'\n", false, "did you mean debug?"),
        ("try-timeout = '0s'\n", false, "try-timeout in "),
        ("outage-timeout = '0ms'\n", false, "nothing can be done in no time; give at least 1ms"),
        ("mount-timeout = '0s'\n", false, "nothing can be done in no time"),
        ("publish-after = '0s'\n", false, "nothing can be done in no time"),
        ("limit-requests = '0/s'\n", false, "nothing could ever be moved"),
        ("limit-upload = '0/s'\n", false, "nothing could ever be moved"),
        ("storage-class = 'Cold'\n", false, "storage-class in "),
        ("storage-class = \"IA\\r\\nx-oss-acl: public\"\n", false, "storage-class in "),
        ("sse = 'rot13'\n", false, "give one of AES256, KMS, SM4"),
        ("content-type = \"text/plain\\nx: y\"\n", false, "is no content type; write it like text/plain"),
        ("content-type = 'text'\n", false, "is no content type"),
        ("endpoint = 'http://oss.example.com'\n", false, "--allow-http"),
        ("[profiles.p]\nregion = 'cn-hangzhou'\n", false, "did you mean profile?"),
        ("region = \n", false, "line 1"),
    ] {
        let path = bench.file("checked.toml", text.as_bytes());
        let output = bench.ossfuse(["config", "check"]).arg(path).output().unwrap();
        assert_eq!(output.status.code(), Some(i32::from(!ok)), "{text}: {}", told(&output));
        assert!(told(&output).contains(word), "{text}: {}", told(&output));
    }
    let output = bench.ossfuse(["config", "check", "/nonexistent"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
}

/// docs/OPTIONS.md, from the definitions.
fn options_page() -> String {
    use ossfuse::config::options::{Kind, OPTIONS};
    let mut page = "# Options\n\n\
        Made from the definitions in `src/config/options.rs`; a test compares them. `OSSFUSE_WRITE_DOCS=1 cargo test \
        --test it config::` writes it anew.\n\n\
        Every option has one name in four places: a flag (`--part-size 16MiB`), `-o` (`part_size=16MiB`), a variable \
        (`OSSFUSE_PART_SIZE=16MiB`), and a key of the config file (`part-size = \"16MiB\"`), there at the top or under \
        `[profile.NAME]`. A flag goes before `-o`, that before the environment, and that before the file.\n"
        .to_owned();
    let mut heading = "";
    for spec in OPTIONS {
        if spec.group.heading() != heading {
            heading = spec.group.heading();
            page.push_str(&format!("\n## {heading}\n\n| option | default | meaning |\n|---|---|---|\n"));
        }
        let escape = |text: &str| text.replace('|', "\\|").replace('<', "&lt;");
        let value = if matches!(spec.kind, Kind::Flag) || spec.value_name.is_empty() {
            String::new()
        } else {
            format!(" {}", escape(spec.value_name))
        };
        let name = if spec.is_typed() { format!("--{}", spec.name) } else { spec.name.to_owned() };
        let short = spec.short.map_or_else(String::new, |short| format!(", `-{short}`"));
        let default = spec.default.map_or_else(String::new, |default| format!("`{default}`"));
        let shared = spec.shared_variable.map_or_else(String::new, |name| format!(" Also the variable `{name}`."));
        page.push_str(&format!("| `{name}{value}`{short} | {default} | {}.{shared} |\n", escape(spec.help)));
    }
    page
}

#[test]
fn the_page_of_options_says_what_the_definitions_say() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPTIONS.md");
    let wanted = options_page();
    if std::env::var("OSSFUSE_WRITE_DOCS").is_ok_and(|value| value == "1") {
        fs::write(&path, &wanted).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap();
    assert!(found == wanted, "docs/OPTIONS.md is out of date: run OSSFUSE_WRITE_DOCS=1 cargo test --test it config::");
}
