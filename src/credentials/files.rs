//! Files that hold keys, of this program and of others (OSS reference, §5.6): told apart by what is in them.
//!
//! A file that others can read is refused before anything of it is used.

use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use super::answer::{keys_in, plain, text};
use super::{CredentialError, EcsRole, Fetched, KeyFile, OidcRole, RamRole, Source, clean_keys, lasting};
use crate::base::time::parse_rfc3339;

/// A file is read up to this size in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Of all files only this one may be read by its group, as ossfs has it.
const GROUP_READABLE: &str = "/etc/passwd-ossfs";

/// What a file has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Keys(Fetched),
    /// It names another place.
    Elsewhere(Source),
    /// It is for something else.
    Nothing,
}

/// Reads a file, or a directory of rotated files.
///
/// # Errors
/// It cannot be read, others can read it too, or it is broken.
pub fn look_at(file: &KeyFile) -> Result<Content, CredentialError> {
    let path = &file.path;
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if metadata.is_dir() {
        return rotated(path, &metadata).map(Content::Keys);
    }
    check_mode(path, &metadata)?;
    let text = read(path)?;
    let what = path.display().to_string();
    if text.trim_start().starts_with('{') {
        return of_json(&what, &text, file);
    }
    if let Some(found) = of_toml(&what, &text, file)? {
        return Ok(Content::Keys(found));
    }
    if text.lines().any(|line| line.trim_start().starts_with('[')) {
        return of_ini(&what, &text, file);
    }
    of_password_file(&what, &text, &file.bucket).map(Content::Keys)
}

fn unreadable(path: &Path, error: &io::Error) -> CredentialError {
    CredentialError::new(path.display(), format!("cannot be read: {error}"), "see --credentials-file")
}

fn read(path: &Path) -> Result<String, CredentialError> {
    let mut text = String::new();
    let taken = fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    taken.map_err(|error| unreadable(path, &error))?;
    Ok(text)
}

fn check_mode(path: &Path, metadata: &Metadata) -> Result<(), CredentialError> {
    let group = if path == Path::new(GROUP_READABLE) { 0o030 } else { 0o070 };
    if metadata.mode() & (0o007 | group) == 0 {
        return Ok(());
    }
    let mend = format!("run `chmod 600 {}`", path.display());
    Err(CredentialError::new(path.display(), "it holds a secret and others can read it", mend))
}

/// `AccessKeyId`, `AccessKeySecret`, `SecurityToken`, `Expiration`, as the Kubernetes driver rotates them.
fn rotated(folder: &Path, metadata: &Metadata) -> Result<Fetched, CredentialError> {
    let part = |name: &str| -> Result<Option<String>, CredentialError> {
        let path = folder.join(name);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&path, &error)),
            // Kubernetes lets everybody read them, in a container that is its own.
            Ok(file) if file.mode() & 0o002 != 0 || metadata.mode() & 0o002 != 0 => {
                let mend = format!("run `chmod -R o-w {}`", folder.display());
                return Err(CredentialError::new(path.display(), "others can write it", mend));
            }
            Ok(_) => {}
        }
        read(&path).map(|text| Some(text.trim().to_owned()))
    };
    let what = folder.display().to_string();
    let id = part("AccessKeyId")?;
    let (secret, token, expires) = (part("AccessKeySecret")?, part("SecurityToken")?, part("Expiration")?);
    if part("AccessKeyId")? != id {
        return Err(CredentialError::new(what, "it is being rotated", "try again"));
    }
    let credentials = clean_keys(&what, id.as_deref(), secret.as_deref(), token.as_deref())?;
    let expires = expires.filter(|text| !text.is_empty()).and_then(|text| parse_rfc3339(&text));
    Ok(Fetched { credentials, expires })
}

/// The CLI's `config.json` with its profiles, or keys themselves.
fn of_json(what: &str, text_of_file: &str, file: &KeyFile) -> Result<Content, CredentialError> {
    let broken = |why: &str| CredentialError::new(what, why, "mend the file");
    let value: Value = serde_json::from_str(text_of_file).map_err(|_| broken("it is no JSON"))?;
    let Some(profiles) = value.get("profiles").and_then(Value::as_array) else {
        return keys_in(what, &value).map(Content::Keys);
    };
    let current = file.profile.as_deref().or_else(|| value.get("current").and_then(Value::as_str));
    let is_wanted =
        |profile: &&Value| current.is_none_or(|current| profile.get("name").and_then(Value::as_str) == Some(current));
    let Some(profile) = profiles.iter().find(is_wanted) else {
        return Err(broken("the profile that is asked for is not in it"));
    };
    let Some(object) = profile.as_object() else { return Err(broken("a profile is no object")) };
    let get = |name: &str| text(object, &[name]).filter(|text| !text.is_empty());
    by_mode(what, &get)
}

/// INI, of ossutil or the SDKs. A `[default]` or `[Credentials]` section is taken, or the one that is asked for.
fn of_ini(what: &str, text: &str, file: &KeyFile) -> Result<Content, CredentialError> {
    let wanted = |section: &str| match &file.profile {
        Some(profile) => section == profile || section.strip_prefix("profile ").map(str::trim) == Some(profile),
        None => section.eq_ignore_ascii_case("credentials") || section.eq_ignore_ascii_case("default"),
    };
    let mut inside = false;
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            inside = wanted(section.trim());
        } else if let Some((name, value)) = line.split_once('=').filter(|_| inside) {
            found.push((plain(name.trim()), value.trim().to_owned()));
        }
    }
    let get = |name: &str| found.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
    by_mode(what, &|name| get(name).filter(|value| !value.is_empty()))
}

/// A profile says by its mode where its keys are.
fn by_mode(what: &str, get: &dyn Fn(&str) -> Option<String>) -> Result<Content, CredentialError> {
    let mode = get("mode").or_else(|| get("type")).map(|mode| plain(&mode)).unwrap_or_default();
    let id = get("accesskeyid");
    match mode.as_str() {
        "" | "ak" | "accesskey" | "ststoken" | "sts" if id.is_none() => Ok(Content::Nothing),
        "" | "ak" | "accesskey" | "ststoken" | "sts" => {
            let token = get("ststoken").or_else(|| get("securitytoken"));
            let keys = clean_keys(what, id.as_deref(), get("accesskeysecret").as_deref(), token.as_deref())?;
            Ok(Content::Keys(lasting(keys)))
        }
        "ramrolearn" => {
            let token = get("ststoken").or_else(|| get("securitytoken"));
            let keys = clean_keys(what, id.as_deref(), get("accesskeysecret").as_deref(), token.as_deref())?;
            let endpoint = OidcRole::endpoint_of(get("stsregion").as_deref(), false);
            Ok(Content::Elsewhere(Source::RamRole(RamRole::of_profile(what, get, keys, endpoint)?)))
        }
        "ecsramrole" => {
            let name = get("ecsrolename").or_else(|| get("ramrolename")).or_else(|| get("rolename"));
            Ok(Content::Elsewhere(Source::Ecs(EcsRole { name, ..EcsRole::default() })))
        }
        "external" => match get("processcommand") {
            Some(command) => Ok(Content::Elsewhere(Source::Process(command))),
            None => Err(CredentialError::new(what, "its process_command is missing", "add it")),
        },
        "oidc" | "oidcrolearn" => oidc(what, get),
        other => {
            let why = format!("its mode `{other}` is not known here");
            Err(CredentialError::new(
                what,
                why,
                "use a profile with AK, StsToken, RamRoleArn, EcsRamRole, OIDC or External",
            ))
        }
    }
}

fn oidc(what: &str, get: &dyn Fn(&str) -> Option<String>) -> Result<Content, CredentialError> {
    let needed = |names: &[&str]| {
        let found = names.iter().find_map(|name| get(name));
        found.ok_or_else(|| CredentialError::new(what, format!("{} is missing", names[0]), "add it"))
    };
    let region = get("stsregion");
    Ok(Content::Elsewhere(Source::Oidc(OidcRole {
        role_arn: needed(&["ramrolearn", "rolearn"])?,
        provider_arn: needed(&["oidcproviderarn"])?,
        token_file: needed(&["oidctokenfile", "oidctokenfilepath"])?.into(),
        session_name: get("ramsessionname").or_else(|| get("rolesessionname")).unwrap_or_else(|| "ossfuse".to_owned()),
        endpoint: OidcRole::endpoint_of(region.as_deref(), false),
    })))
}

/// The program's own config file; `None` where it is no TOML, or holds no key.
fn of_toml(what: &str, text: &str, file: &KeyFile) -> Result<Option<Fetched>, CredentialError> {
    let Ok(table) = text.parse::<toml::Table>() else { return Ok(None) };
    let profile = file.profile.as_ref().and_then(|name| table.get("profile")?.get(name)?.as_table());
    let get = |name: &str| {
        let value = profile.and_then(|profile| profile.get(name)).or_else(|| table.get(name));
        value.and_then(toml::Value::as_str)
    };
    let (id, secret) = (get("access-key-id"), get("access-key-secret"));
    if id.is_none() && secret.is_none() {
        return Ok(None);
    }
    clean_keys(what, id, secret, get("security-token")).map(|keys| Some(lasting(keys)))
}

/// ossfs's own: `AK:SK` or `BUCKET:AK:SK` a line, or `OSSAccessKeyId=…` and `OSSSecretKey=…`.
fn of_password_file(what: &str, text: &str, bucket: &str) -> Result<Fetched, CredentialError> {
    let broken = |why: &str| CredentialError::new(what, why, "its lines are AK:SK or BUCKET:AK:SK");
    let lines = || text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let value = |name: &str| lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    if let (Some(id), Some(secret)) = (value("OSSAccessKeyId"), value("OSSSecretKey")) {
        return clean_keys(what, Some(id), Some(secret), None).map(lasting);
    }
    let (mut own, mut general) = (None, None);
    for line in lines() {
        if line.contains([' ', '\t']) {
            return Err(broken("a line has a space in it"));
        }
        let (Some(first), Some(last)) = (line.find(':'), line.rfind(':')) else {
            return Err(broken("a line has no colon"));
        };
        let keys = |id: &str| clean_keys(what, Some(id), Some(&line[last + 1..]), None);
        if first == last {
            general = general.or(Some(keys(&line[..first])?));
        } else if &line[..first] == bucket && own.replace(keys(&line[first + 1..last])?).is_some() {
            return Err(broken("two lines are for this bucket"));
        }
    }
    own.or(general).map(lasting).ok_or_else(|| broken("no line is for this bucket"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn at(name: &str, text: &str, mode: u32, profile: Option<&str>) -> Result<Content, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let file = KeyFile { path, profile: profile.map(str::to_owned), bucket: "photos".into() };
        look_at(&file).map_err(|error| error.to_string())
    }

    fn keys(text: &str, profile: Option<&str>) -> (String, String, Option<String>) {
        match at("f", text, 0o600, profile).unwrap() {
            Content::Keys(Fetched { credentials: keys, .. }) => {
                (keys.access_key_id, keys.access_key_secret, keys.security_token)
            }
            other => panic!("{other:?}"),
        }
    }

    fn plain_keys(token: Option<&str>) -> (String, String, Option<String>) {
        ("i".into(), "s".into(), token.map(str::to_owned))
    }

    #[test]
    fn every_format_is_read() {
        let ossutil = "[Credentials]\nlanguage=EN\naccessKeyID = i\naccessKeySecret=s\nstsToken=t\n[Bucket-Cname]\n";
        assert_eq!(keys(ossutil, None), plain_keys(Some("t")));
        let sdk = "[default]\ntype = access_key\naccess_key_id = x\naccess_key_secret = y\n\
                   [work]\ntype=sts\naccess_key_id=i\naccess_key_secret=s\nsecurity_token=t\n";
        assert_eq!(keys(sdk, Some("work")), plain_keys(Some("t")));
        let cli = r#"{"current": "b", "profiles": [{"name": "a", "mode": "AK", "access_key_id": "x"},
            {"name": "b", "mode": "AK", "access_key_id": "i", "access_key_secret": "s", "sts_token": ""}]}"#;
        assert_eq!(keys(cli, None), plain_keys(None));
        let own = "region = 'x'\naccess-key-id = 'x'\naccess-key-secret = 's'\n[profile.p]\naccess-key-id = 'i'";
        assert_eq!(keys(own, Some("p")), plain_keys(None));
        assert_eq!(keys("# comment\n\ni:s\n", None), plain_keys(None));
        assert_eq!(keys("other:x:y\nx:y\nphotos:i:s\n", None), plain_keys(None));
        assert_eq!(keys("OSSAccessKeyId=i\nOSSSecretKey=s\n", None), plain_keys(None));
    }

    #[test]
    fn a_profile_may_name_another_place() {
        let role = "[Credentials]\nmode=EcsRamRole\necsRoleName=r\n";
        let Ok(Content::Elsewhere(Source::Ecs(found))) = at("f", role, 0o600, None) else { panic!() };
        assert_eq!(found.name.as_deref(), Some("r"));
        let external = r#"{"profiles": [{"name": "a", "mode": "External", "process_command": "keys"}]}"#;
        assert_eq!(at("f", external, 0o600, None), Ok(Content::Elsewhere(Source::Process("keys".into()))));
        let oidc = r#"{"profiles": [{"name": "a", "mode": "OIDC", "ram_role_arn": "r", "oidc_provider_arn": "p",
            "oidc_token_file": "/t", "sts_region": "cn-x"}]}"#;
        let Ok(Content::Elsewhere(Source::Oidc(found))) = at("f", oidc, 0o600, None) else { panic!() };
        assert_eq!(found.endpoint, "https://sts.cn-x.aliyuncs.com");
        let role = r#"{"profiles": [{"name": "a", "mode": "RamRoleArn", "access_key_id": "i", "access_key_secret": "s",
            "ram_role_arn": "acs:ram::1:role/r", "ram_session_name": "me", "sts_region": "cn-x"}]}"#;
        let ini = "[default]\ntype = ram_role_arn\naccess_key_id = i\naccess_key_secret = s\n\
            role_arn = acs:ram::1:role/r\nrole_session_name = me\n";
        for (text, endpoint) in [(role, "https://sts.cn-x.aliyuncs.com"), (ini, "https://sts.aliyuncs.com")] {
            let Ok(Content::Elsewhere(Source::RamRole(found))) = at("f", text, 0o600, None) else { panic!() };
            let wanted = ("acs:ram::1:role/r", "me", "i", endpoint);
            let keys = &found.keys;
            assert_eq!((&*found.role_arn, &*found.session_name, &*keys.access_key_id, &*found.endpoint), wanted);
        }
        assert_eq!(at("f", "[Credentials]\nlanguage=EN\n", 0o600, None), Ok(Content::Nothing));
        assert!(at("f", "[default]\ntype=bearer\n", 0o600, None).unwrap_err().contains("`bearer` is not known"));
    }

    #[test]
    fn what_others_can_read_is_refused() {
        for (mode, ok) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o602, false)] {
            let found = at("f", "i:hush", mode, None);
            assert_eq!(found.is_ok(), ok, "{mode:o}");
            if let Err(why) = found {
                assert!(why.contains("chmod 600") && !why.contains("hush"), "{why}");
            }
        }
    }

    #[test]
    fn broken_files_are_told_without_what_is_in_them() {
        for text in ["{hush", "hush", "a b:hush", "photos:i:hush\nphotos:j:hush", "x:i:hush", "i:hu\u{7}sh"] {
            let why = at("f", text, 0o600, None).unwrap_err();
            assert!(!why.contains("hush") && why.contains("; "), "{why}");
        }
    }

    #[test]
    fn a_folder_of_rotated_files_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let file = KeyFile { path: dir.path().to_owned(), profile: None, bucket: "b".into() };
        write("AccessKeySecret", "s\n");
        assert!(look_at(&file).unwrap_err().to_string().contains("the access key id is missing"));
        write("AccessKeyId", "i");
        write("SecurityToken", "t");
        write("Expiration", "2030-01-01T00:00:00Z\n");
        let Content::Keys(found) = look_at(&file).unwrap() else { panic!() };
        assert_eq!(found.credentials.security_token.as_deref(), Some("t"));
        assert!(found.expires.is_some());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(look_at(&file).unwrap_err().to_string().contains("others can write it"));
    }
}
