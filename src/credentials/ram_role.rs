//! A RAM role that a lasting key takes by AssumeRole of STS (OSS reference, §5.4): what is sent, and its signature.
//!
//! Makes the call's body and sends nothing: that is `remote`'s. The signature is that of Alibaba Cloud's RPC services, of
//! which the service itself knows nothing: HMAC-SHA1 over all parameters in the order of their names.

use super::CredentialError;
use crate::oss::{Credentials, component, hmac_sha1};

/// What every role allows.
const LIFE_SECONDS: &str = "3600";

/// A role, and the key that may take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamRole {
    pub role_arn: String,
    pub session_name: String,
    /// A word that the role wants to hear of whoever takes it.
    pub external_id: Option<String>,
    /// Narrows the role's rights, as JSON.
    pub policy: Option<String>,
    /// The address of STS.
    pub endpoint: String,
    pub keys: Credentials,
}

impl RamRole {
    /// From what a profile says, `get` knowing its values by their plain names.
    ///
    /// # Errors
    /// The role is not named.
    pub(super) fn of_profile(
        what: &str,
        get: &dyn Fn(&str) -> Option<String>,
        keys: Credentials,
        endpoint: String,
    ) -> Result<Self, CredentialError> {
        let either = |one: &str, other: &str| get(one).or_else(|| get(other));
        let role_arn = either("ramrolearn", "rolearn");
        Ok(Self {
            role_arn: role_arn.ok_or_else(|| CredentialError::new(what, "ram_role_arn is missing", "add it"))?,
            session_name: either("ramsessionname", "rolesessionname").unwrap_or_else(|| "ossfuse".to_owned()),
            external_id: get("externalid"),
            policy: get("policy"),
            endpoint,
            keys,
        })
    }

    /// The body of the POST, signed. `at` is the time as RFC 3339, `nonce` a word that was not used before.
    pub(super) fn signed_form(&self, at: &str, nonce: &str) -> String {
        let mut pairs = vec![
            ("AccessKeyId", self.keys.access_key_id.as_str()),
            ("Action", "AssumeRole"),
            ("DurationSeconds", LIFE_SECONDS),
            ("Format", "JSON"),
            ("RoleArn", &self.role_arn),
            ("RoleSessionName", &self.session_name),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureNonce", nonce),
            ("SignatureVersion", "1.0"),
            ("Timestamp", at),
            ("Version", "2015-04-01"),
        ];
        let optional = [
            ("ExternalId", self.external_id.as_deref()),
            ("Policy", self.policy.as_deref()),
            ("SecurityToken", self.keys.security_token.as_deref()),
        ];
        pairs.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
        pairs.sort_unstable();
        let form = form(&pairs);
        let signature = signature("POST", &form, &self.keys.access_key_secret);
        format!("{form}&Signature={}", component(&signature))
    }
}

/// Names and values as a query or the body of a POST carries them.
pub(super) fn form(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{}={}", component(name), component(value))).collect();
    pairs.join("&")
}

/// `form` in the order of its names, encoded.
fn signature(method: &str, form: &str, secret: &str) -> String {
    hmac_sha1(&format!("{secret}&"), format!("{method}&%2F&{}", component(form)).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example in Alibaba Cloud's reference of RPC signatures.
    #[test]
    fn the_signature_is_that_of_the_reference() {
        let pairs = [
            ("AccessKeyId", "testid"),
            ("Action", "DescribeRegions"),
            ("Format", "XML"),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureNonce", "3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf"),
            ("SignatureVersion", "1.0"),
            ("Timestamp", "2016-02-23T12:46:24Z"),
            ("Version", "2014-05-26"),
        ];
        assert_eq!(signature("GET", &form(&pairs), "testsecret"), "OLeaidS1JvxuMvnyHOwuJ+uX5qY=");
    }

    #[test]
    fn the_form_has_what_the_profile_says_and_never_the_secret() {
        let profile = [("ramrolearn", "acs:ram::1:role/r"), ("externalid", "a b"), ("ramsessionname", "me")];
        let get = |name: &str| profile.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let keys = Credentials {
            access_key_id: "i".into(),
            access_key_secret: "hush".into(),
            security_token: Some("t/1".into()),
        };
        let role = RamRole::of_profile("x", &get, keys.clone(), "https://sts.aliyuncs.com".into()).unwrap();
        let form = role.signed_form("2024-03-07T08:09:10Z", "n1");
        let wanted = "AccessKeyId=i&Action=AssumeRole&DurationSeconds=3600&ExternalId=a%20b&Format=JSON&\
            RoleArn=acs%3Aram%3A%3A1%3Arole%2Fr&RoleSessionName=me&SecurityToken=t%2F1&SignatureMethod=HMAC-SHA1&\
            SignatureNonce=n1&SignatureVersion=1.0&Timestamp=2024-03-07T08%3A09%3A10Z&Version=2015-04-01&Signature=";
        assert!(form.starts_with(wanted) && !form.contains("hush"), "{form}");
        assert!(RamRole::of_profile("x", &|_| None, keys, String::new()).is_err());
    }
}
