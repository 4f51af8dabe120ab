//! What the process finds around it: variables, user, folders. Taken once, handed down as a value.
//!
//! Nothing else of the configuration asks the process environment, so that a test can be any user anywhere.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::options::{OPTIONS, OptionSpec};
use super::problem::{Problem, did_you_mean};
use super::raw::{RawOptions, Source};

/// The surroundings of a command.
#[derive(Clone, PartialEq, Eq)]
pub struct Environment {
    /// Variables that are set, not empty, and UTF-8.
    pub variables: BTreeMap<String, String>,
    /// Effective user and group.
    pub uid: u32,
    pub gid: u32,
    /// The working directory, absolute.
    pub cwd: PathBuf,
    /// The config file of the machine.
    pub system_config: PathBuf,
    /// The access keys of ossfs.
    pub password_file: PathBuf,
}

impl std::fmt::Debug for Environment {
    /// Variables may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("uid", &self.uid).field("cwd", &self.cwd).finish_non_exhaustive()
    }
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        // SAFETY: both only read this process's ids and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        Self {
            variables,
            uid,
            gid,
            cwd,
            system_config: "/etc/ossfuse/config.toml".into(),
            password_file: "/etc/passwd-ossfs".into(),
        }
    }

    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    fn home(&self) -> Option<PathBuf> {
        self.variable("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
    }

    fn absolute(&self, variable: &str) -> Option<PathBuf> {
        self.variable(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// The user's config file, whether or not it is there.
    pub fn user_config(&self) -> Option<PathBuf> {
        Some(self.home()?.join(".config/ossfuse/config.toml"))
    }

    /// Where state folders lie unless `--state-dir` says otherwise.
    ///
    /// # Errors
    /// A user without a home.
    pub fn state_parent(&self) -> Result<PathBuf, Problem> {
        if self.is_root() {
            return Ok("/var/lib/ossfuse".into());
        }
        let base = self.absolute("XDG_STATE_HOME").or_else(|| Some(self.home()?.join(".local/state")));
        let base = base.ok_or_else(|| {
            Problem::new("--state-dir", "no default is known, as HOME is not set", "give --state-dir DIR")
        })?;
        Ok(base.join("ossfuse"))
    }

    /// Where the sockets of this user's mounts lie. Without `XDG_RUNTIME_DIR`, beside the state: never in /tmp.
    ///
    /// # Errors
    /// A user without a home.
    pub fn runtime_dir(&self) -> Result<PathBuf, Problem> {
        if self.is_root() {
            return Ok("/run/ossfuse".into());
        }
        match self.absolute("XDG_RUNTIME_DIR") {
            Some(dir) => Ok(dir.join("ossfuse")),
            None => Ok(self.state_parent()?.join("run")),
        }
    }

    /// The values that variables give, and a warning for each `OSSFUSE_…` that is no option.
    ///
    /// Access keys are not among them: their variables are read as `--credentials` says.
    pub fn options(&self) -> (RawOptions, Vec<String>) {
        let mut raw = RawOptions::default();
        let on_command_line = || OPTIONS.iter().copied().filter(|spec| spec.is_typed());
        for spec in on_command_line() {
            for name in variables_of(spec) {
                if let Some(text) = self.variable(&name) {
                    raw.set(spec, text, Source::Environment(name));
                }
            }
        }
        let known: Vec<String> = on_command_line().map(OptionSpec::variable).collect();
        let unknown = self.variables.keys().filter(|name| name.starts_with("OSSFUSE_") && !known.contains(name));
        (raw, unknown.map(|name| warning(name, &known)).collect())
    }
}

/// In rising order: the program's own goes before one that it shares.
fn variables_of(spec: &OptionSpec) -> impl Iterator<Item = String> {
    spec.shared_variable.map(str::to_owned).into_iter().chain([spec.variable()])
}

fn warning(name: &str, known: &[String]) -> String {
    let shared = OPTIONS.iter().filter_map(|spec| spec.shared_variable);
    let mend = did_you_mean(name, known.iter().map(String::as_str).chain(shared), "it is passed over");
    format!("{name}: there is no such option; {mend}")
}

#[cfg(test)]
pub(super) fn for_test(variables: &[(&str, &str)]) -> Environment {
    Environment {
        variables: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        uid: 1000,
        gid: 100,
        cwd: "/work".into(),
        system_config: "/nonexistent/config.toml".into(),
        password_file: "/nonexistent/passwd-ossfs".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::{ENDPOINT, PART_SIZE};

    #[test]
    fn every_option_has_a_variable_and_its_own_goes_before_a_shared_one() {
        let environment = for_test(&[
            ("OSSFUSE_PART_SIZE", "1MiB"),
            ("OSS_ENDPOINT", "https://shared"),
            ("OSSFUSE_ENDPOINT", "https://own"),
        ]);
        let (raw, warnings) = environment.options();
        assert_eq!(raw.text(&PART_SIZE), Some("1MiB"));
        assert_eq!(raw.text(&ENDPOINT), Some("https://own"));
        assert!(warnings.is_empty());
    }

    #[test]
    fn an_unknown_variable_is_a_warning_that_names_the_nearest() {
        let environment =
            for_test(&[("OSSFUSE_PART_SISE", "1"), ("OSSFUSE_ACCESS_KEY_SECRET", "hush"), ("OSS_X", "1")]);
        let (_, warnings) = environment.options();
        assert_eq!(
            warnings,
            [
                "OSSFUSE_ACCESS_KEY_SECRET: there is no such option; did you mean OSS_ACCESS_KEY_SECRET?",
                "OSSFUSE_PART_SISE: there is no such option; did you mean OSSFUSE_PART_SIZE?",
            ]
        );
    }

    #[test]
    fn folders_follow_the_user() {
        let root = Environment { uid: 0, ..for_test(&[("HOME", "/root"), ("XDG_STATE_HOME", "/x")]) };
        assert_eq!(root.state_parent().unwrap(), PathBuf::from("/var/lib/ossfuse"));
        assert_eq!(root.runtime_dir().unwrap(), PathBuf::from("/run/ossfuse"));
        let user = for_test(&[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/1000")]);
        assert_eq!(user.state_parent().unwrap(), PathBuf::from("/home/u/.local/state/ossfuse"));
        assert_eq!(user.runtime_dir().unwrap(), PathBuf::from("/run/user/1000/ossfuse"));
        let xdg = for_test(&[("HOME", "/home/u"), ("XDG_STATE_HOME", "/s")]);
        assert_eq!(xdg.state_parent().unwrap(), PathBuf::from("/s/ossfuse"));
        assert_eq!(xdg.runtime_dir().unwrap(), PathBuf::from("/s/ossfuse/run"));
        let nobody = for_test(&[("XDG_STATE_HOME", "relative")]);
        assert!(nobody.state_parent().unwrap_err().to_string().contains("give --state-dir DIR"));
    }
}
