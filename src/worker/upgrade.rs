//! Upgrading a mount to the binary on disk: whether that can be done is found out before anything happens.

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Worker;
use crate::control::{Failure, Response};
use crate::supervise::Report;
use crate::{ledger, spill};

/// Has the program tell what it reads and writes, and do nothing else.
const VARIABLE: &str = "_OSSFUSE_FORMATS";
/// How long it may take to tell.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the answer may take to get out.
const FAREWELL: Duration = Duration::from_millis(100);

/// What a binary reads and writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Formats {
    version: String,
    /// Of session files; older ones are read too.
    session: u8,
    /// Of the ledger; no other one is read.
    ledger: u8,
    /// Of what supervisor and worker say to each other.
    link: u8,
}

impl Formats {
    fn own() -> Self {
        // Read from the program's image, not folded into its code: a test makes another build by changing it there.
        let version = std::hint::black_box(env!("CARGO_PKG_VERSION")).to_owned();
        Self { version, session: spill::SESSION_VERSION, ledger: ledger::VERSION, link: 1 }
    }

    /// Why a binary of these formats cannot take over from one of `old`.
    fn refusal(&self, old: &Self) -> Option<String> {
        let cannot =
            |what: &str| Some(format!("version {} cannot read the {what} of version {}", self.version, old.version));
        if self.session < old.session {
            cannot("write sessions")
        } else if self.ledger != old.ledger {
            cannot("open files")
        } else if self.link != old.link {
            cannot("mount")
        } else {
            None
        }
    }
}

/// Tells the formats of this binary, if that is what it was started for.
pub fn tell_formats_if_asked() -> Option<ExitCode> {
    use std::io::Write;
    std::env::var_os(VARIABLE)?;
    let text = serde_json::to_string(&Formats::own()).unwrap_or_default();
    let told = std::io::stdout().write_all(text.as_bytes());
    Some(if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Begins an upgrade: the supervisor ends this worker once the answer is out.
pub(super) async fn of(worker: &Worker) -> Response {
    let place = worker.config.mountpoint.display().to_string();
    let failed =
        |why: String, mend: &str| Response::Failed(Failure { what: place.clone(), why, mend: mend.to_owned() });
    let Some(supervised) = worker.supervised.clone() else {
        return failed("it has no supervisor".to_owned(), "unmount it, and mount it again");
    };
    let program = supervised.program();
    let asked = tokio::task::spawn_blocking(move || ask(&program));
    let formats = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(Ok(formats))) => formats,
        Ok(Ok(Err(why))) => return failed(why, "nothing was changed; install it again"),
        Ok(Err(_)) | Err(_) => return failed("the new binary does not answer".to_owned(), "nothing was changed"),
    };
    if let Some(why) = formats.refusal(&Formats::own()) {
        return failed(why, "nothing was changed; unmount it, and mount it with the new version");
    }
    log::info!("upgrading from version {} to {}", Formats::own().version, formats.version);
    tokio::spawn(async move {
        tokio::time::sleep(FAREWELL).await;
        supervised.report(&Report::Upgrade);
    });
    Response::Done
}

fn ask(program: &std::path::Path) -> Result<Formats, String> {
    let mut command = Command::new(program);
    command.env_clear().env(VARIABLE, "1").stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().map_err(|error| format!("{}: {error}", program.display()))?;
    serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("{} is no ossfuse that can take over", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_reads_everything_may_take_over() {
        let own = Formats::own();
        assert_eq!(own.refusal(&own), None);
        let newer = Formats { session: own.session + 1, version: "9.0".into(), ..own.clone() };
        assert_eq!(newer.refusal(&own), None);
        assert!(own.refusal(&newer).unwrap().contains("write sessions of version 9.0"));
        let other = Formats { ledger: own.ledger + 1, ..own.clone() };
        assert!(other.refusal(&own).is_some() && own.refusal(&other).is_some());
    }
}
