//! A command of the user's that prints keys as JSON (OSS reference, §5.5).

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::answer::keys_in;
use super::{CredentialError, Fetched};

const WHAT: &str = "--credential-process";
/// It is ended after so long.
const PATIENCE: Duration = Duration::from_secs(15);
/// What it prints is read up to so many bytes.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// Runs the command with `sh -c`. Its stderr goes nowhere: it might hold a secret.
pub(super) async fn run(command: &str) -> Result<Fetched, CredentialError> {
    let failed = |why: String| CredentialError::new(WHAT, why, "run the command by hand and see what it prints");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = shell.kill_on_drop(true).spawn().map_err(|error| failed(format!("it cannot be run: {error}")))?;
    let mut output = Vec::new();
    let stdout = child.stdout.take();
    let work = async {
        if let Some(stdout) = stdout {
            stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut output).await?;
        }
        child.wait().await
    };
    let status = tokio::time::timeout(PATIENCE, work)
        .await
        .map_err(|_| failed(format!("it did not end within {} s", PATIENCE.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        return Err(failed(format!("it failed: {status}")));
    }
    let value = serde_json::from_slice(&output).map_err(|_| failed("what it printed is no JSON".to_owned()))?;
    keys_in(WHAT, &value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_it_prints_is_taken() {
        let json =
            r#"{"AccessKeyId":"i","AccessKeySecret":"s","SecurityToken":"t","Expiration":"2030-01-01T00:00:00Z"}"#;
        let fetched = run(&format!("echo '{json}'")).await.unwrap();
        assert_eq!(fetched.credentials.security_token.as_deref(), Some("t"));
        assert!(fetched.expires.is_some());
        let external = r#"{"mode":"AK","access_key_id":"i","access_key_secret":"s"}"#;
        assert_eq!(run(&format!("echo '{external}'")).await.unwrap().credentials.access_key_id, "i");
    }

    #[tokio::test]
    async fn failures_say_what_to_do_and_repeat_nothing() {
        for (command, word) in
            [("echo hush", "no JSON"), ("exit 3", "it failed"), ("echo '{\"AccessKeyId\":\"hush\"}'", "is missing")]
        {
            let why = run(command).await.unwrap_err().to_string();
            assert!(why.contains(word) && why.contains("; ") && !why.contains("hush"), "{why}");
        }
    }
}
