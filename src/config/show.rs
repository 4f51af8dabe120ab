//! What `mount --show-config` prints: every option, its value, and where that comes from.

use super::endpoint::Url;
use super::environment::Environment;
use super::options::{self as o, Group, Kind, OPTIONS, OptionSpec};
use super::raw::{RawOptions, Source};
use super::resolve::resolve_endpoint;

/// One option as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub name: &'static str,
    /// `***` for a secret; empty where there is none.
    pub value: String,
    pub source: String,
}

/// All options, in the order of the help.
pub fn show(raw: &RawOptions, environment: &Environment) -> Vec<Shown> {
    let shown = OPTIONS.iter().copied().filter(|spec| **spec != o::SHOW_CONFIG);
    shown
        .filter(|spec| spec.group != Group::MountOptionOnly || raw.given(spec).is_some())
        .map(|spec| {
            let (value, source) = of_one(raw, environment, spec);
            let value = if spec.is_secret() && !value.is_empty() { "***".to_owned() } else { value };
            Shown { name: spec.name, value, source }
        })
        .collect()
}

fn of_one(raw: &RawOptions, environment: &Environment, spec: &'static OptionSpec) -> (String, String) {
    if spec.is_credential()
        && let Some(name) = spec.shared_variable
        && let Some(value) = environment.variable(name)
    {
        return (value.to_owned(), format!("environment {name}"));
    }
    match raw.given(spec) {
        Some(given) => {
            let text = match spec.kind {
                Kind::Flag => raw.flag(spec).map_or_else(|_| given.text.clone(), yes_or_no),
                _ => given.text.clone(),
            };
            (text, source(&given.source, spec.name))
        }
        None => follows(raw, spec).unwrap_or_else(|| {
            let text = spec.default.unwrap_or(if spec.kind == Kind::Flag { "no" } else { "" });
            (text.to_owned(), "default".to_owned())
        }),
    }
}

fn yes_or_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

/// Endpoint and region, either from the other.
fn follows(raw: &RawOptions, spec: &OptionSpec) -> Option<(String, String)> {
    if spec.name != o::ENDPOINT.name && spec.name != o::REGION.name {
        return None;
    }
    let (endpoint, region) = resolve_endpoint(raw, raw.flag(&o::CNAME).ok()?).ok()?;
    if spec.name == o::REGION.name {
        return region.map(|region| (region, "follows from endpoint".to_owned()));
    }
    Some((Url(&endpoint).to_string(), "follows from region".to_owned()))
}

fn source(source: &Source, name: &str) -> String {
    match source {
        Source::Default => "default".to_owned(),
        Source::Flag => format!("flag --{name}"),
        Source::MountOption => "-o".to_owned(),
        Source::Environment(variable) => format!("environment {variable}"),
        Source::File { path, profile: None } => path.display().to_string(),
        Source::File { path, profile: Some(profile) } => format!("{} [profile.{profile}]", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::environment::for_test;
    use crate::config::parse_mount_options;

    #[test]
    fn each_value_has_its_source_and_secrets_are_masked() {
        let environment = for_test(&[("OSS_ACCESS_KEY_SECRET", "hush"), ("OSSFUSE_UPLOAD_WORKERS", "3")]);
        let (mut raw, _) = environment.options();
        raw.merge(parse_mount_options("region=cn-hangzhou,read_only,noexec").unwrap());
        raw.set(&o::PART_SIZE, "1MiB", Source::Flag);
        let path = std::path::PathBuf::from("/c.toml");
        raw.set(&o::SECURITY_TOKEN, "hush", Source::File { path, profile: Some("p".into()) });
        let shown = show(&raw, &environment);
        let of = |name: &str| {
            let found = shown.iter().find(|shown| shown.name == name).unwrap();
            (found.value.as_str(), found.source.as_str())
        };
        assert_eq!(of("part-size"), ("1MiB", "flag --part-size"));
        assert_eq!(of("read-only"), ("yes", "-o"));
        assert_eq!(of("kernel-flags"), ("noexec", "-o"));
        assert_eq!(of("upload-workers"), ("3", "environment OSSFUSE_UPLOAD_WORKERS"));
        assert_eq!(of("endpoint"), ("https://oss-cn-hangzhou.aliyuncs.com", "follows from region"));
        assert_eq!(of("fsync"), ("local", "default"));
        assert_eq!(of("allow-other"), ("no", "default"));
        assert_eq!(of("access-key-secret"), ("***", "environment OSS_ACCESS_KEY_SECRET"));
        assert_eq!(of("security-token"), ("***", "/c.toml [profile.p]"));
        assert!(shown.iter().all(|shown| !shown.value.contains("hush")));
    }
}
