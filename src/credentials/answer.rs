//! Keys as JSON: what metadata services, STS, commands and the CLI's files say. Names differ, the shape does not.

use serde_json::{Map, Value};

use super::{CredentialError, Fetched, clean_keys};
use crate::base::time::parse_rfc3339;

/// Reads keys out of an object, or out of the `Credentials` in it. Names count without case, `-` and `_`.
///
/// # Errors
/// A part is missing or odd, or the answer says that it is no success.
pub(super) fn keys_in(what: &str, value: &Value) -> Result<Fetched, CredentialError> {
    let unreadable = || CredentialError::new(what, "its answer is no JSON object with keys", "see OPERATIONS.md");
    let object = value.as_object().ok_or_else(unreadable)?;
    if let Some(code) = text(object, &["code"]).filter(|code| !code.eq_ignore_ascii_case("success")) {
        let message = text(object, &["message"]).unwrap_or_default();
        return Err(CredentialError::new(what, format!("{} {}", tame(&code), tame(&message)), "see its own log"));
    }
    let object = value.get("Credentials").and_then(Value::as_object).unwrap_or(object);
    let id = text(object, &["accesskeyid"]);
    let secret = text(object, &["accesskeysecret", "secretaccesskey"]);
    let token = text(object, &["securitytoken", "ststoken", "sessiontoken"]);
    let credentials = clean_keys(what, id.as_deref(), secret.as_deref(), token.as_deref())?;
    let expires = match text(object, &["expiration"]).filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(parse_rfc3339(text.trim()).ok_or_else(|| {
            CredentialError::new(what, "its Expiration is no time", "it must be like 2024-03-07T14:09:10Z")
        })?),
    };
    Ok(Fetched { credentials, expires })
}

/// The text under the first name that is there.
pub(super) fn text(object: &Map<String, Value>, names: &[&str]) -> Option<String> {
    let found = object.iter().find(|(name, _)| names.contains(&plain(name).as_str()));
    found.and_then(|(_, value)| value.as_str()).map(str::to_owned)
}

/// `AccessKeyId`, `access_key_id` and `access-key-id` are one name.
pub(super) fn plain(name: &str) -> String {
    name.chars().filter(|char| *char != '-' && *char != '_').collect::<String>().to_ascii_lowercase()
}

/// Words of another program, fit for a line of ours.
fn tame(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_spelling_is_read() {
        let wanted = |value: Value| {
            let fetched = keys_in("x", &value).unwrap();
            let keys = fetched.credentials;
            (keys.access_key_id, keys.access_key_secret, keys.security_token, fetched.expires.is_some())
        };
        let keys = |token: Option<&str>, expires| ("i".to_owned(), "s".to_owned(), token.map(str::to_owned), expires);
        let time = "2024-03-07T14:09:10Z";
        let metadata = json!({"AccessKeyId": "i", "AccessKeySecret": "s", "SecurityToken": "t", "Expiration": time,
            "Code": "Success"});
        assert_eq!(wanted(metadata), keys(Some("t"), true));
        let sts = json!({"RequestId": "r", "Credentials": {"AccessKeyId": "i", "AccessKeySecret": "s",
            "SecurityToken": "t", "Expiration": time}});
        assert_eq!(wanted(sts), keys(Some("t"), true));
        let cli = json!({"mode": "StsToken", "access_key_id": "i", "access_key_secret": "s", "sts_token": "t"});
        assert_eq!(wanted(cli), keys(Some("t"), false));
        assert_eq!(wanted(json!({"AccessKeyId": " i", "SecretAccessKey": "s\n"})), keys(None, false));
    }

    #[test]
    fn what_is_wrong_is_named_without_the_secret() {
        let why = |value: Value| keys_in("x", &value).unwrap_err().to_string();
        assert_eq!(why(json!({"AccessKeyId": "i"})), "x: the secret of the access key is missing; add it");
        assert!(why(json!([1])).contains("no JSON object"));
        let odd = why(json!({"AccessKeyId": "i", "AccessKeySecret": "hu sh"}));
        assert!(odd.contains("characters that no key has") && !odd.contains("hu sh"), "{odd}");
        let refused = why(json!({"Code": "AuthenticationFail", "Message": "expired\n"}));
        assert!(refused.starts_with("x: AuthenticationFail expired;"), "{refused}");
        assert!(why(json!({"AccessKeyId": "i", "AccessKeySecret": "s", "Expiration": "soon"})).contains("no time"));
    }
}
