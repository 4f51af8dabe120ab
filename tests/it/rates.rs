//! `--limit-…`: what the server sees is never more than was asked for.
//!
//! Times are the server's, and only how soon something came is judged: how late is the machine's affair.

use std::time::Instant;

use super::harness::{Bench, MIB, assert_same, noise};

/// A rate is held by whoever takes at least this long for so many bytes; a fifth of a second may be saved up.
fn least_millis(bytes: usize, rate: usize) -> u128 {
    (bytes as u128 * 1000 / rate as u128).saturating_sub(200)
}

#[test]
fn uploads_keep_to_their_rate() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(71, 3 * MIB);
    bench.file("source", &content);
    let mount = bench.mount(&["--limit-upload", "1MiB/s", "--part-size", "256KiB"]);
    let begun = Instant::now();
    mount.sh("cp ../source f");
    let taken = begun.elapsed().as_millis();
    assert!(taken >= least_millis(content.len(), MIB), "{taken} ms");
    assert_same(&bench.server.get("f").unwrap(), &content, "f");
    assert_eq!(mount.status()["retries"], 0, "a limit is no silence");
}

#[test]
fn downloads_keep_to_their_rate() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(72, 3 * MIB);
    bench.server.put("f", &content);
    let mount = bench.mount(&["--limit-download", "1MiB/s"]);
    let begun = Instant::now();
    assert_same(&mount.read("f"), &content, "f");
    let taken = begun.elapsed().as_millis();
    assert!(taken >= least_millis(content.len(), MIB), "{taken} ms");
    // No request brings more than a second's worth, whatever the line could carry.
    let largest = bench.server.log().iter().filter_map(|entry| entry["bytes_out"].as_u64()).max();
    assert!(largest <= Some(MIB as u64 / 2), "{largest:?}");
}

#[test]
fn requests_keep_to_their_rate() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--limit-requests", "10/s"]);
    let before = bench.server.log().len();
    let begun = Instant::now();
    mount.sh("for i in {1..30}; do echo $i > f$i & done; wait");
    let taken = begun.elapsed().as_millis();
    let made = bench.server.log().len() - before;
    assert!(made >= 30 && taken >= (made as u128 / 10 - 1) * 1000, "{made} requests in {taken} ms");
    assert_eq!(bench.server.keys().len(), 30);
}
