//! Where access keys come from: given ones, files of this and other tools, a metadata service, STS, a command.
//!
//! [`Source`] names a place; [`Source::fetch`] reads it once; a [`Keeper`] keeps what it read fresh. Which place it is
//! (the chain of `--credentials auto`) is decided by `config`. No value of a secret is in any error or Debug output.

mod answer;
mod files;
mod keeper;
mod process;
mod ram_role;
mod remote;

use std::path::PathBuf;
use std::time::SystemTime;

use crate::oss::Credentials;

pub use files::{Content, look_at};
pub use keeper::Keeper;
pub use ram_role::RamRole;
pub use remote::OidcRole;

/// One place that has access keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody signs: public buckets.
    Anonymous,
    /// Read when the command was started; they cannot change.
    Given(Credentials),
    /// A file of any known format, or a directory of rotated files.
    File(KeyFile),
    /// A command whose stdout is JSON (OSS reference, §5.5).
    Process(String),
    /// The metadata service of an ECS instance (§5.3).
    Ecs(EcsRole),
    /// AssumeRoleWithOIDC of STS (§5.4).
    Oidc(OidcRole),
    /// AssumeRole of STS with a lasting key (§5.4).
    RamRole(RamRole),
}

/// A role that an ECS instance has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EcsRole {
    /// Its name, or the URL that answers with its keys; `None`: the one role of the instance.
    pub name: Option<String>,
    /// Whether it is asked because nothing else was found: then that is what a failure says.
    pub last_resort: bool,
    /// Whether keys must not be asked for without a token, also where the hardened mode is not answered.
    pub hardened_only: bool,
}

/// A file, and what of it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    pub path: PathBuf,
    /// Goes before the section or profile that the file itself prefers.
    pub profile: Option<String>,
    /// A line of a password file may be for one bucket.
    pub bucket: String,
}

/// Keys, and how long they are good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub credentials: Credentials,
    /// `None`: until they are replaced.
    pub expires: Option<SystemTime>,
}

/// Why there are no keys: `WHAT: WHY; MEND`, without any secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}; {mend}")]
pub struct CredentialError {
    pub what: String,
    pub why: String,
    pub mend: String,
}

impl CredentialError {
    fn new(what: impl std::fmt::Display, why: impl std::fmt::Display, mend: impl std::fmt::Display) -> Self {
        Self { what: what.to_string(), why: why.to_string(), mend: mend.to_string() }
    }
}

impl Source {
    /// Reads the place once.
    ///
    /// # Errors
    /// It has no keys, refuses them, or must not be trusted.
    pub async fn fetch(&self) -> Result<Fetched, CredentialError> {
        match self {
            Self::Anonymous => Ok(lasting(Credentials {
                access_key_id: String::new(),
                access_key_secret: String::new(),
                security_token: None,
            })),
            Self::Given(credentials) => Ok(lasting(credentials.clone())),
            Self::File(file) => match files::look_at(file)? {
                Content::Keys(fetched) => Ok(fetched),
                Content::Elsewhere(source) => Box::pin(source.fetch()).await,
                Content::Nothing => Err(CredentialError::new(
                    file.path.display(),
                    "no access key is in it",
                    "see docs/GUIDE.md for what it may look like",
                )),
            },
            Self::Process(command) => process::run(command).await,
            Self::Ecs(role) => remote::ask_metadata(remote::METADATA, role).await,
            Self::Oidc(role) => remote::assume_role_by_oidc(role).await,
            Self::RamRole(role) => remote::assume_role(role).await,
        }
    }

    /// Whether what it says can change while a mount runs.
    fn is_fixed(&self) -> bool {
        matches!(self, Self::Anonymous | Self::Given(_))
    }

    /// Whether it is a directory whose files are replaced one by one.
    fn is_rotated(&self) -> bool {
        matches!(self, Self::File(file) if file.path.is_dir())
    }

    /// For people: where the keys come from.
    pub fn describe(&self) -> String {
        match self {
            Self::Anonymous => "anonymous".to_owned(),
            Self::Given(_) => "the environment".to_owned(),
            Self::File(file) => file.path.display().to_string(),
            Self::Process(_) => "--credential-process".to_owned(),
            Self::Ecs(EcsRole { name: Some(name), .. }) => format!("the ECS role {name}"),
            Self::Ecs(_) => "the role of this ECS instance".to_owned(),
            Self::Oidc(role) => format!("the role {} by OIDC", role.role_arn),
            Self::RamRole(role) => format!("the role {}", role.role_arn),
        }
    }
}

fn lasting(credentials: Credentials) -> Fetched {
    Fetched { credentials, expires: None }
}

/// Keys as a user may have copied them: without space around them, and nothing in them that cannot be sent.
///
/// # Errors
/// Which of the two is missing or odd, never what it is.
pub fn clean_keys(
    what: &str,
    id: Option<&str>,
    secret: Option<&str>,
    token: Option<&str>,
) -> Result<Credentials, CredentialError> {
    let clean = |name: &str, value: &str| {
        let value = value.trim();
        let sendable = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic());
        let odd = || CredentialError::new(what, format!("{name} has characters that no key has"), "copy it again");
        sendable.then(|| value.to_owned()).ok_or_else(odd)
    };
    let missing = |name: &str| CredentialError::new(what, format!("{name} is missing"), "add it");
    Ok(Credentials {
        access_key_id: clean("the access key id", id.ok_or_else(|| missing("the access key id"))?)?,
        access_key_secret: clean("its secret", secret.ok_or_else(|| missing("the secret of the access key"))?)?,
        security_token: token.filter(|token| !token.is_empty()).map(|token| clean("the token", token)).transpose()?,
    })
}
