//! Where the service stands: endpoint texts, what host names tell of the region, and how the bucket is addressed.
//!
//! Pure; nothing is resolved or asked. A region that no host name tells is not guessed (OSS reference §1).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// How the bucket stands in the URL (OSS reference §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    VirtualHost,
    Path,
    Cname,
}

impl Addressing {
    /// Path style for IP literals and `localhost`, where no bucket can stand before the host; else virtual host.
    pub fn auto(endpoint: &Endpoint) -> Self {
        if endpoint.ip().is_some() || endpoint.is_localhost() { Self::Path } else { Self::VirtualHost }
    }
}

/// Scheme, host and port of the service, without bucket and path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub https: bool,
    /// Lower case; an IPv6 literal without its brackets.
    pub host: String,
    pub port: Option<u16>,
}

/// The text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an endpoint ({why}); write it like https://oss-cn-hangzhou.aliyuncs.com")]
pub struct BadEndpoint {
    text: String,
    why: &'static str,
}

/// The legacy hosts without a region in their name, and the region they stand for.
const LEGACY_HOSTS: [&str; 2] = ["oss.aliyuncs.com", "oss-internal.aliyuncs.com"];
const LEGACY_REGION: &str = "cn-hangzhou";

impl Endpoint {
    /// Reads an endpoint with or without scheme, port and trailing slash; https where no scheme is named.
    pub fn parse(text: &str) -> Result<Self, BadEndpoint> {
        let bad = |why| BadEndpoint { text: text.into(), why };
        let (https, rest) = split_scheme(text.trim()).ok_or_else(|| bad("neither http nor https"))?;
        let (host, port) = split_port(rest.trim_end_matches('/')).ok_or_else(|| bad("bad port"))?;
        let host = host.to_ascii_lowercase();
        if host.contains(':') {
            host.parse::<Ipv6Addr>().map_err(|_| bad("bad IPv6 address"))?;
        } else if !is_host_name(&host) {
            return Err(bad("bad host name; no bucket, path or user belongs here"));
        }
        Ok(Self { https, host, port })
    }

    /// The public or the intranet endpoint of a region in its general form (`cn-hangzhou`).
    pub fn of_region(region: &str, internal: bool) -> Self {
        let suffix = if internal { "-internal" } else { "" };
        Self { https: true, host: format!("oss-{region}{suffix}.aliyuncs.com"), port: None }
    }

    /// The region in its general form, where the host name tells it. Acceleration endpoints and foreign hosts tell none.
    pub fn region(&self) -> Option<&str> {
        if LEGACY_HOSTS.contains(&self.host.as_str()) {
            return Some(LEGACY_REGION);
        }
        let name = self.host.strip_suffix(".aliyuncs.com")?;
        if let Some(region) = name.strip_suffix(".oss") {
            return plain_label(region);
        }
        if let Some(region) = name.strip_suffix(".oss-data-acc") {
            return plain_label(region.strip_suffix("-internal").unwrap_or(region));
        }
        let region = name.strip_prefix("oss-")?;
        let region = region.strip_suffix("-internal").unwrap_or(region);
        if region.starts_with("accelerate") { None } else { plain_label(region) }
    }

    /// Whether requests stay on this machine: proxies do not apply, and plain http gives nothing away.
    pub fn is_loopback(&self) -> bool {
        self.is_localhost() || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// Host and port as they stand in a URL.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        self.port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    fn is_localhost(&self) -> bool {
        self.host == "localhost" || self.host.ends_with(".localhost")
    }
}

impl FromStr for Endpoint {
    type Err = BadEndpoint;
    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        Self::parse(text)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.authority())
    }
}

fn split_scheme(text: &str) -> Option<(bool, &str)> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Some((true, text));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "https" => Some((true, rest)),
        "http" => Some((false, rest)),
        _ => None,
    }
}

/// Host and port; the brackets of an IPv6 literal are taken off.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').filter(|(host, _)| host.contains(':'))?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        // More than one colon without brackets: an IPv6 literal, which then has no port.
        None if text.matches(':').count() > 1 => (text, None),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0).map(|port| (host, Some(port))),
        None => Some((host, None)),
    }
}

fn is_host_name(host: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    host.len() <= 253 && host.split('.').all(is_label)
}

fn plain_label(label: &str) -> Option<&str> {
    (!label.is_empty() && !label.contains('.')).then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text).unwrap()
    }

    #[test]
    fn endpoints_are_read_with_and_without_their_optional_parts() {
        for (text, canonical) in [
            ("oss-cn-hangzhou.aliyuncs.com", "https://oss-cn-hangzhou.aliyuncs.com"),
            ("http://OSS-cn-hangzhou.aliyuncs.com/", "http://oss-cn-hangzhou.aliyuncs.com"),
            (" https://127.0.0.1:9000// ", "https://127.0.0.1:9000"),
            ("localhost:80", "https://localhost:80"),
            ("http://[::1]:9000", "http://[::1]:9000"),
            ("::1", "https://[::1]"),
            ("HTTP://[2001:DB8::1]", "http://[2001:db8::1]"),
        ] {
            assert_eq!(endpoint(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for text in [
            "",
            "ftp://host",
            "https://",
            "host:0",
            "host:99999",
            "host:x",
            "host/path",
            "user@host",
            "a..b",
            "[::1",
            "[::1]x",
            "[host]:80",
            "ho st",
            "host?x",
            "1:2:3:z",
        ] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn regions_come_from_host_names_and_make_them() {
        for (host, region) in [
            ("oss-cn-hangzhou.aliyuncs.com", Some("cn-hangzhou")),
            ("oss-cn-shanghai-finance-1-internal.aliyuncs.com", Some("cn-shanghai-finance-1")),
            ("ap-southeast-1.oss.aliyuncs.com", Some("ap-southeast-1")),
            ("cn-beijing-internal.oss-data-acc.aliyuncs.com", Some("cn-beijing")),
            ("oss.aliyuncs.com", Some("cn-hangzhou")),
            ("oss-internal.aliyuncs.com", Some("cn-hangzhou")),
            ("oss-accelerate.aliyuncs.com", None),
            ("oss-accelerate-overseas.aliyuncs.com", None),
            ("files.example.com", None),
            ("127.0.0.1:9000", None),
        ] {
            assert_eq!(endpoint(host).region(), region, "{host}");
        }
        for internal in [false, true] {
            assert_eq!(Endpoint::of_region("us-west-1", internal).region(), Some("us-west-1"));
        }
    }

    #[test]
    fn addressing_is_by_path_where_a_bucket_cannot_be_a_host() {
        for (text, addressing, loopback) in [
            ("http://127.0.0.1:9000", Addressing::Path, true),
            ("http://[::1]", Addressing::Path, true),
            ("http://localhost:9000", Addressing::Path, true),
            ("http://10.1.2.3", Addressing::Path, false),
            ("oss-cn-hangzhou.aliyuncs.com", Addressing::VirtualHost, false),
        ] {
            assert_eq!(Addressing::auto(&endpoint(text)), addressing, "{text}");
            assert_eq!(endpoint(text).is_loopback(), loopback, "{text}");
        }
    }
}
