//! Programs that are started while files are open: descriptors that they inherit are closed by the kernel in the
//! middle of their exec, and that must neither hang nor publish anything.

use std::fs::File;
use std::io::Write;
use std::process::Command;

use super::harness::{Bench, wait_until};

#[test]
fn a_child_that_is_started_does_not_close_the_files_of_its_parent() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let mut file = File::create(mount.path("f")).unwrap();
    file.write_all(b"half").unwrap();
    for _ in 0..5 {
        assert!(Command::new("true").status().unwrap().success());
    }
    assert_eq!(bench.server.get("f"), None, "it is not finished");
    file.write_all(b" and half").unwrap();
    drop(file);
    assert_eq!(bench.server.get("f").as_deref(), Some(&b"half and half"[..]));
}

#[test]
fn a_program_that_becomes_another_one_closes_its_files() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    // Python's descriptors are closed by the exec.
    mount.sh("python3 -c 'import os; f = os.open(\"f\", os.O_WRONLY | os.O_CREAT); os.write(f, b\"x\"); os.execvp(\"true\", [\"true\"])'");
    wait_until("it is published", || bench.server.get("f").as_deref() == Some(&b"x"[..]));
}
