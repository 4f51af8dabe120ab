//! The address of the service: read from what was typed, derived from the region, and the region from it.
//!
//! Pure; the forms of the hosts are those of the OSS reference, §1. Knows nothing of where a value came from.

use std::fmt;
use std::net::IpAddr;

use crate::oss::Endpoint;

/// The domain of the service's own hosts.
const DOMAIN: &str = ".aliyuncs.com";

/// Reads `[http[s]://]HOST[:PORT][/]`; https unless told otherwise. An IPv6 host keeps its brackets.
///
/// # Errors
/// Why the text is no endpoint.
pub fn parse(text: &str) -> Result<Endpoint, String> {
    let (https, rest) = match text.split_once("://") {
        None => (true, text),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
        Some((scheme, _)) => return Err(format!("`{scheme}` is no scheme of the service; write https://HOST")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err("it has a path; write https://HOST and name the bucket by itself".to_owned());
    }
    if authority.contains('@') {
        return Err("it holds a user or password; write https://HOST".to_owned());
    }
    let (host, port) = split_port(authority)?;
    if !is_host(host) {
        return Err(format!("`{host}` is no host name; write https://HOST"));
    }
    Ok(Endpoint { https, host: host.to_ascii_lowercase(), port })
}

fn split_port(authority: &str) -> Result<(&str, Option<u16>), String> {
    let host_end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let Some(colon) = authority[host_end..].find(':') else { return Ok((authority, None)) };
    let (host, port) = (&authority[..host_end + colon], &authority[host_end + colon + 1..]);
    match port.parse() {
        Ok(port) if port != 0 => Ok((host, Some(port))),
        _ => Err(format!("`{port}` is no port; write https://HOST:PORT")),
    }
}

fn is_host(host: &str) -> bool {
    if host.starts_with('[') {
        return address(host).is_some();
    }
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    host.len() <= 253 && host.split('.').all(label)
}

fn address(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(inner) => inner.parse().ok().map(IpAddr::V6),
        None => host.parse().ok(),
    }
}

/// Whether the host cannot carry a bucket as its first label.
pub fn wants_path_style(endpoint: &Endpoint) -> bool {
    address(&endpoint.host).is_some() || endpoint.host == "localhost"
}

/// Whether what is sent there stays on this machine.
pub fn is_loopback(endpoint: &Endpoint) -> bool {
    address(&endpoint.host).map_or(endpoint.host == "localhost", |address| address.is_loopback())
}

/// `cn-hangzhou` for the hosts of that region; `None` where the host does not tell.
pub fn region_of(endpoint: &Endpoint) -> Option<&str> {
    let name = endpoint.host.strip_suffix(DOMAIN)?;
    let region = match name.strip_suffix(".oss") {
        Some(dual_stack) => dual_stack,
        None => {
            let region = name.strip_prefix("oss-")?;
            region.strip_suffix("-internal").unwrap_or(region)
        }
    };
    let told = is_region(region) && region.contains('-') && !region.starts_with("accelerate");
    told.then_some(region)
}

/// The bucket, where it was left standing before a host of the service.
pub fn bucket_in(endpoint: &Endpoint) -> Option<&str> {
    let (bucket, rest) = endpoint.host.split_once('.')?;
    (rest.starts_with("oss-") && rest.ends_with(DOMAIN)).then_some(bucket)
}

/// The endpoint of a region, on the internet or inside it.
pub fn of_region(region: &str, internal: bool) -> Endpoint {
    let internal = if internal { "-internal" } else { "" };
    Endpoint { https: true, host: format!("oss-{region}{internal}{DOMAIN}"), port: None }
}

/// The general form of a region id: `cn-hangzhou` also for `oss-cn-hangzhou`; `None` for what cannot be one.
pub fn general_region(text: &str) -> Option<&str> {
    let region = text.strip_prefix("oss-").unwrap_or(text);
    is_region(region).then_some(region)
}

fn is_region(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// The endpoint as a URL.
#[derive(Debug)]
pub struct Url<'e>(pub &'e Endpoint);

impl fmt::Display for Url<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.0.https { "https" } else { "http" }, self.0.host)?;
        self.0.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_come_with_and_without_scheme_port_and_slash() {
        for (text, url) in [
            ("oss-cn-hangzhou.aliyuncs.com", "https://oss-cn-hangzhou.aliyuncs.com"),
            ("HTTPS://OSS-cn-hangzhou.aliyuncs.com/", "https://oss-cn-hangzhou.aliyuncs.com"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("http://[::1]:9000/", "http://[::1]:9000"),
            ("https://[fe80::1]", "https://[fe80::1]"),
            ("localhost:80", "https://localhost:80"),
        ] {
            assert_eq!(Url(&parse(text).unwrap()).to_string(), url, "{text}");
        }
    }

    #[test]
    fn what_is_no_endpoint_says_why() {
        for text in [
            "",
            "http://",
            "ftp://host",
            "https://host/path",
            "https://host?x",
            "https://key:secret@host",
            "host:port",
            "host:0",
            "host:65536",
            "a b",
            "[::1",
            "::1",
            "[zz]",
            "a..b",
            ".a",
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains("; write https://HOST"), "{text}: {why}");
            assert!(!why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn the_region_stands_in_the_host() {
        for (host, region) in [
            ("oss-cn-hangzhou.aliyuncs.com", Some("cn-hangzhou")),
            ("oss-cn-hangzhou-internal.aliyuncs.com", Some("cn-hangzhou")),
            ("oss-cn-shanghai-finance-1.aliyuncs.com", Some("cn-shanghai-finance-1")),
            ("oss-us-west-1.aliyuncs.com", Some("us-west-1")),
            ("cn-hangzhou.oss.aliyuncs.com", Some("cn-hangzhou")),
            ("oss-accelerate.aliyuncs.com", None),
            ("oss-accelerate-overseas.aliyuncs.com", None),
            ("oss-cn-hangzhou.aliyuncs.com.evil.example", None),
            ("b.oss-cn-hangzhou.aliyuncs.com", None),
            ("127.0.0.1", None),
            ("localhost", None),
            ("files.example.com", None),
        ] {
            assert_eq!(region_of(&parse(host).unwrap()), region, "{host}");
        }
        assert_eq!(bucket_in(&parse("b.oss-cn-hangzhou.aliyuncs.com").unwrap()), Some("b"));
        assert_eq!(bucket_in(&parse("oss-cn-hangzhou.aliyuncs.com").unwrap()), None);
    }

    #[test]
    fn the_host_follows_from_the_region() {
        for internal in [false, true] {
            assert_eq!(region_of(&of_region("cn-beijing", internal)), Some("cn-beijing"));
        }
        assert_eq!(of_region("cn-beijing", true).host, "oss-cn-beijing-internal.aliyuncs.com");
        assert_eq!(general_region("oss-cn-beijing"), Some("cn-beijing"));
        assert_eq!(general_region("cn-beijing"), Some("cn-beijing"));
        for bad in ["", "oss-", "cn/../x", "cn beijing", "CN", "-cn", "evil.example/"] {
            assert_eq!(general_region(bad), None, "{bad}");
        }
    }

    #[test]
    fn loopback_and_addresses_are_told_apart() {
        for (host, path_style, loopback) in [
            ("127.0.0.1", true, true),
            ("127.9.9.9", true, true),
            ("[::1]", true, true),
            ("localhost", true, true),
            ("10.0.0.1", true, false),
            ("127.0.0.1.example.com", false, false),
            ("localhost.example.com", false, false),
        ] {
            let endpoint = parse(host).unwrap();
            assert_eq!((wants_path_style(&endpoint), is_loopback(&endpoint)), (path_style, loopback), "{host}");
        }
    }
}
