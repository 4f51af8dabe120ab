//! Which place access keys come from: the chain of `--credentials`, first found wins.
//!
//! Only looks whether a place has keys; what is in it is read, and kept fresh, by `credentials`.

use std::path::PathBuf;

use super::environment::Environment;
use super::options as o;
use super::problem::Problem;
use super::raw::{RawOptions, Source as From};
use crate::credentials::{Content, CredentialError, EcsRole, KeyFile, OidcRole, Source, clean_keys, look_at};

/// Variables of other tools for the same service, after `OSS_ACCESS_KEY_ID` and its kin.
const COMMON_KEYS: [&str; 3] =
    ["ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN"];
const OIDC: [&str; 3] = ["ALIBABA_CLOUD_ROLE_ARN", "ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "ALIBABA_CLOUD_OIDC_TOKEN_FILE"];

impl std::convert::From<CredentialError> for Problem {
    fn from(error: CredentialError) -> Self {
        Self::new(error.what, error.why, error.mend)
    }
}

/// What the chain looks at.
struct Chain<'c> {
    raw: &'c RawOptions,
    environment: &'c Environment,
    bucket: &'c str,
}

/// The place that has the access key.
///
/// # Errors
/// A place that is asked for has none, or one that has some must not be trusted.
pub(super) fn resolve_credentials(
    raw: &RawOptions,
    environment: &Environment,
    bucket: &str,
) -> Result<Source, Problem> {
    let chain = Chain { raw, environment, bucket };
    let mend = "set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET, or write access-key-id and access-key-secret into \
                ~/.config/ossfuse/config.toml (chmod 600)";
    let missing = |place: &str| Problem::new("credentials", format!("there is no access key {place}"), mend);
    match raw.choice(&o::CREDENTIALS)? {
        Some("anonymous") => Ok(Source::Anonymous),
        Some("env") => chain.environment_keys()?.ok_or_else(|| missing("in the environment")),
        Some("file") => match chain.config_keys()? {
            Some(found) => Ok(found),
            None => chain.named_file()?.ok_or_else(|| missing("in the config file, nor is there a --credentials-file")),
        },
        Some("process") => {
            let command = raw.text(&o::CREDENTIAL_PROCESS).map(str::to_owned);
            command.map(Source::Process).ok_or_else(|| needs("process", "--credential-process CMD"))
        }
        Some("ecs-role") => Ok(Source::Ecs(chain.ecs_role(false))),
        Some("oidc") => chain.oidc().ok_or_else(|| needs("oidc", &OIDC.join(", "))),
        _ => chain.automatic(),
    }
}

fn needs(word: &str, what: &str) -> Problem {
    Problem::new(format!("--credentials {word}"), format!("it needs {what}"), format!("give {what}"))
}

impl Chain<'_> {
    fn automatic(&self) -> Result<Source, Problem> {
        let on_line = |spec: &o::OptionSpec| self.raw.given(spec).is_some_and(|value| value.source.is_command_line());
        let off_line = |spec: &o::OptionSpec| self.raw.given(spec).is_some() && !on_line(spec);
        if let Some(found) = self.named(&on_line)? {
            return Ok(found);
        }
        if let Some(found) = self.environment_keys()? {
            return Ok(found);
        }
        if let Some(found) = self.config_keys()? {
            return Ok(found);
        }
        if let Some(found) = self.named(&off_line)? {
            return Ok(found);
        }
        if let Some(found) = self.usual_files()? {
            return Ok(found);
        }
        match self.oidc() {
            Some(found) => Ok(found),
            None if self.environment.variable("ALIBABA_CLOUD_ECS_METADATA_DISABLED").is_some_and(is_yes) => {
                let why = "there is no access key in the environment, the config file, or the files of other tools";
                let mend = "set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET, or see --credentials";
                Err(Problem::new("credentials", why, mend))
            }
            None => Ok(Source::Ecs(self.ecs_role(true))),
        }
    }

    /// What an option names, of those that `wanted` lets through.
    fn named(&self, wanted: &dyn Fn(&o::OptionSpec) -> bool) -> Result<Option<Source>, Problem> {
        if wanted(&o::CREDENTIAL_PROCESS) {
            return Ok(self.raw.text(&o::CREDENTIAL_PROCESS).map(|command| Source::Process(command.to_owned())));
        }
        if wanted(&o::CREDENTIALS_FILE) {
            return self.named_file();
        }
        Ok(wanted(&o::ROLE_NAME).then(|| Source::Ecs(self.ecs_role(false))))
    }

    fn environment_keys(&self) -> Result<Option<Source>, Problem> {
        let own = [&o::ACCESS_KEY_ID, &o::ACCESS_KEY_SECRET, &o::SECURITY_TOKEN]
            .map(|spec| spec.shared_variable.unwrap_or(spec.name));
        for names in [own, COMMON_KEYS] {
            if let Some(found) = given_keys("the environment", names.map(|n| (n, self.environment.variable(n))))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The keys of the config file or its profile; that file is read again when it changes.
    fn config_keys(&self) -> Result<Option<Source>, Problem> {
        let keys = [&o::ACCESS_KEY_ID, &o::ACCESS_KEY_SECRET, &o::SECURITY_TOKEN];
        let in_file = keys.map(|spec| self.raw.given(spec).filter(|value| matches!(value.source, From::File { .. })));
        let texts = [0, 1, 2].map(|at| (keys[at].name, in_file[at].map(|value| value.text.as_str())));
        if given_keys("the config file", texts)?.is_none() {
            return Ok(None);
        }
        let place = in_file.iter().flatten().find_map(|value| match &value.source {
            From::File { path, .. } => Some(path.clone()),
            _ => None,
        });
        let profile = in_file.iter().flatten().find_map(|value| match &value.source {
            From::File { profile, .. } => profile.clone(),
            _ => None,
        });
        Ok(place.map(|path| self.file(path, profile)))
    }

    fn named_file(&self) -> Result<Option<Source>, Problem> {
        let path = self.raw.path(&o::CREDENTIALS_FILE, &self.environment.cwd)?;
        Ok(path.map(|path| self.file(path, self.profile())))
    }

    fn file(&self, path: PathBuf, profile: Option<String>) -> Source {
        Source::File(self.key_file(path, profile))
    }

    fn key_file(&self, path: PathBuf, profile: Option<String>) -> KeyFile {
        KeyFile { path, profile, bucket: self.bucket.to_owned() }
    }

    fn profile(&self) -> Option<String> {
        self.environment.variable("ALIBABA_CLOUD_PROFILE").map(str::to_owned)
    }

    /// The files of other tools, in their usual places. One that is there and has no keys is passed over.
    fn usual_files(&self) -> Result<Option<Source>, Problem> {
        let variable = |name: &str| self.environment.variable(name).map(PathBuf::from);
        let home = |name: &str| self.environment.variable("HOME").map(|home| PathBuf::from(home).join(name));
        let cli = !self.environment.variable("ALIBABA_CLOUD_CLI_PROFILE_DISABLED").is_some_and(is_yes);
        let places = [
            home(".ossutilconfig"),
            variable("ALIBABA_CLOUD_CONFIG_FILE").or_else(|| home(".aliyun/config.json")).filter(|_| cli),
            variable("ALIBABA_CLOUD_CREDENTIALS_FILE").or_else(|| home(".alibabacloud/credentials")),
            variable("OSS_CREDENTIAL_FILE"),
            home(".passwd-ossfs"),
            Some(self.environment.password_file.clone()),
        ];
        for path in places.into_iter().flatten().filter(|path| path.exists()) {
            let file = self.key_file(path, self.profile());
            match look_at(&file)? {
                Content::Nothing => {}
                Content::Keys(_) | Content::Elsewhere(_) => return Ok(Some(Source::File(file))),
            }
        }
        Ok(None)
    }

    fn oidc(&self) -> Option<Source> {
        let [role_arn, provider_arn, token_file] = OIDC.map(|name| self.environment.variable(name));
        let region = self.environment.variable("ALIBABA_CLOUD_STS_REGION");
        let vpc = self.environment.variable("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED").is_some_and(is_yes);
        let endpoint = match self.environment.variable("STS_ENDPOINT") {
            Some(url) if url.contains("://") => url.trim_end_matches('/').to_owned(),
            Some(host) => format!("https://{host}"),
            None => OidcRole::endpoint_of(region, vpc),
        };
        let session = self.environment.variable("ALIBABA_CLOUD_ROLE_SESSION_NAME").unwrap_or("ossfuse");
        Some(Source::Oidc(OidcRole {
            role_arn: role_arn?.to_owned(),
            provider_arn: provider_arn?.to_owned(),
            token_file: token_file?.into(),
            session_name: session.to_owned(),
            endpoint,
        }))
    }

    fn ecs_role(&self, last_resort: bool) -> EcsRole {
        let name = self.raw.text(&o::ROLE_NAME).or_else(|| self.environment.variable("ALIBABA_CLOUD_ECS_METADATA"));
        let hardened_only = self.environment.variable("ALIBABA_CLOUD_IMDSV1_DISABLED").is_some_and(is_yes);
        EcsRole { name: name.map(str::to_owned), last_resort, hardened_only }
    }
}

fn is_yes(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}

/// `None` where none of the three is there; half a key is an error, not a reason to look further.
fn given_keys(place: &str, values: [(&str, Option<&str>); 3]) -> Result<Option<Source>, Problem> {
    let [(id_name, id), (secret_name, secret), (token_name, token)] = values;
    let missing = |there: &str, name: &str| {
        let why = format!("{there} is set, {name} is not");
        Err(Problem::new(format!("credentials in {place}"), why, format!("set {name}")))
    };
    match (id, secret) {
        (Some(_), Some(_)) => {
            Ok(Some(Source::Given(clean_keys(&format!("credentials in {place}"), id, secret, token)?)))
        }
        (Some(_), None) => missing(id_name, secret_name),
        (None, Some(_)) => missing(secret_name, id_name),
        (None, None) if token.is_some() => missing(token_name, id_name),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::config::environment::for_test;
    use crate::config::{Layers, parse_mount_options};

    /// The whole chain, each place with keys of its own name.
    struct Bench(tempfile::TempDir);

    impl Bench {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path
        }

        fn find(&self, variables: &[(&str, &str)], options: &str) -> Result<String, String> {
            let home = self.0.path().to_str().unwrap();
            let mut environment = for_test(&[variables, &[("HOME", home)]].concat());
            environment.password_file = self.0.path().join("passwd-ossfs");
            let layers = Layers::gather(parse_mount_options(options).unwrap(), &environment).unwrap();
            let found = resolve_credentials(&layers.raw, &environment, "photos").map_err(|e| e.to_string())?;
            let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
            Ok(match found {
                Source::Anonymous => "anonymous".into(),
                Source::Given(keys) => keys.access_key_id,
                Source::File(file) => name(&file.path),
                Source::Process(command) => command,
                Source::Ecs(role) => format!("ecs {:?} {}", role.name, role.last_resort),
                Source::Oidc(role) => role.endpoint,
                Source::RamRole(role) => role.role_arn,
            })
        }
    }

    #[test]
    fn the_first_place_that_has_keys_wins() {
        let bench = Bench::new();
        let oidc = OIDC.map(|name| (name, "x"));
        let common = [(COMMON_KEYS[0], "common"), (COMMON_KEYS[1], "s")];
        let own = [("OSS_ACCESS_KEY_ID", "own"), ("OSS_ACCESS_KEY_SECRET", "s")];
        let file = "OSSFUSE_CREDENTIALS_FILE";
        assert_eq!(bench.find(&[], "").unwrap(), "ecs None true");
        assert_eq!(bench.find(&oidc, "").unwrap(), "https://sts.aliyuncs.com");
        bench.write("passwd-ossfs", "i:s");
        assert_eq!(bench.find(&oidc, "").unwrap(), "passwd-ossfs");
        bench.write(".passwd-ossfs", "i:s");
        assert_eq!(bench.find(&oidc, "").unwrap(), ".passwd-ossfs");
        bench.write(".aliyun/config.json", r#"{"profiles": [{"access_key_id": "i", "access_key_secret": "s"}]}"#);
        assert_eq!(bench.find(&oidc, "").unwrap(), "config.json");
        bench.write(".ossutilconfig", "[Credentials]\nlanguage=EN");
        assert_eq!(bench.find(&oidc, "").unwrap(), "config.json", "one without keys is passed over");
        bench.write(".ossutilconfig", "[Credentials]\naccessKeyID=i\naccessKeySecret=s");
        assert_eq!(bench.find(&oidc, "").unwrap(), ".ossutilconfig");
        assert_eq!(bench.find(&[(file, "/named")], "").unwrap(), "named");
        bench.write(".config/ossfuse/config.toml", "access-key-id = 'i'\naccess-key-secret = 's'");
        assert_eq!(bench.find(&[(file, "/named")], "").unwrap(), "config.toml");
        assert_eq!(bench.find(&common, "").unwrap(), "common");
        assert_eq!(bench.find(&[&common[..], &own].concat(), "").unwrap(), "own");
        assert_eq!(bench.find(&own, "role-name=r").unwrap(), "ecs Some(\"r\") false");
        assert_eq!(bench.find(&own, "role-name=r,credentials-file=/k").unwrap(), "k");
        assert_eq!(bench.find(&own, "credentials-file=/k,credential-process=cmd").unwrap(), "cmd");
    }

    #[test]
    fn one_place_can_be_asked_for() {
        let bench = Bench::new();
        let own = [("OSS_ACCESS_KEY_ID", "own"), ("OSS_ACCESS_KEY_SECRET", "s")];
        assert_eq!(bench.find(&own, "credentials=anonymous").unwrap(), "anonymous");
        assert_eq!(bench.find(&own, "credentials=env,credentials-file=/k").unwrap(), "own");
        assert_eq!(bench.find(&own, "credentials=file,credentials-file=/k").unwrap(), "k");
        assert_eq!(bench.find(&own, "credentials=ecs-role").unwrap(), "ecs None false");
        for (word, needed) in
            [("file", "--credentials-file"), ("process", "--credential-process"), ("oidc", "ALIBABA_CLOUD_ROLE_ARN")]
        {
            let why = bench.find(&own, &format!("credentials={word}")).unwrap_err();
            assert!(why.contains(needed), "{why}");
        }
        let none = bench.find(&[], "credentials=env").unwrap_err();
        assert!(none.starts_with("credentials: there is no access key in the environment; set OSS_"), "{none}");
        let half = bench.find(&own[..1], "").unwrap_err();
        let wanted = "OSS_ACCESS_KEY_ID is set, OSS_ACCESS_KEY_SECRET is not; set OSS_ACCESS_KEY_SECRET";
        assert_eq!(half, format!("credentials in the environment: {wanted}"));
        assert!(bench.find(&[("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")], "").is_err());
    }
}
