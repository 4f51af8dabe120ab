//! ListObjects and ListObjectsV2.

use super::server::TestServer;
use super::wire::Reply;

fn with_keys(keys: &[&str]) -> TestServer {
    let server = TestServer::start();
    keys.iter().for_each(|key| drop(server.put(key, b"x")));
    server
}

/// The common prefixes of a page.
fn prefixes(page: &Reply) -> Vec<String> {
    page.elements("CommonPrefixes").iter().map(|inner| inner.replace("<Prefix>", "").replace("</Prefix>", "")).collect()
}

#[test]
fn pages_follow_the_order_of_the_bytes() {
    let server = with_keys(&["a-b", "a/1", "a/2", "a0", "%E6%96%87", "z"]);
    for (version, parameter, next) in
        [("list-type=2&", "continuation-token", "NextContinuationToken"), ("", "marker", "NextMarker")]
    {
        let (mut items, mut marker) = (Vec::new(), String::new());
        loop {
            let page = server.get(&format!("?{version}delimiter=%2F&max-keys=1&encoding-type=url{marker}"));
            items.extend(page.elements("Key"));
            items.extend(prefixes(&page));
            let Some(next) = page.element(next) else {
                assert_eq!(page.element("IsTruncated").as_deref(), Some("false"));
                break;
            };
            marker = format!("&{parameter}={next}");
        }
        assert_eq!(items, ["a-b", "a%2F", "a0", "z", "%E6%96%87"]);
    }
}

#[test]
fn a_page_has_100_items_unless_told() {
    let server = TestServer::start();
    for i in 0..101 {
        server.control("PUT", &format!("object/test-bucket/k{i:03}"), "");
    }
    let page = server.get("?list-type=2");
    assert_eq!((page.elements("Key").len(), page.element("KeyCount").as_deref()), (100, Some("100")));
    assert_eq!(page.element("MaxKeys").as_deref(), Some("100"));
    assert_eq!(server.get("?list-type=2&max-keys=1000").elements("Key").len(), 101);
    for max in ["0", "1001", "-1", "x"] {
        assert_eq!(server.get(&format!("?list-type=2&max-keys={max}")).error(), (400, "InvalidArgument".into()));
        assert_eq!(server.get(&format!("?max-keys={max}")).error(), (400, "InvalidArgument".into()));
    }
}

#[test]
fn markers_and_prefixes_narrow_the_listing() {
    let server = with_keys(&["d/", "d/x", "d/y/z", "e"]);
    let keys = |query: &str| server.get(&format!("?list-type=2&{query}")).elements("Key");
    assert_eq!(keys("prefix=d%2F&delimiter=%2F"), ["d/", "d/x"]);
    assert_eq!(keys("start-after=d%2Fx"), ["d/y/z", "e"]);
    assert_eq!(prefixes(&server.get("?list-type=2&delimiter=%2F&start-after=d%2F")), [""; 0]);
    assert_eq!(server.get("?marker=d%2Fx").elements("Key"), ["d/y/z", "e"]);
    assert_eq!(keys("prefix=none").len(), 0);
    let long = "k".repeat(1024);
    assert_eq!(server.get(&format!("?list-type=2&prefix={long}")).error(), (400, "InvalidArgument".into()));
    assert_eq!(server.get("?list-type=2&continuation-token=%21").error(), (400, "InvalidArgument".into()));
}

#[test]
fn names_are_encoded_where_asked() {
    let server = with_keys(&["p%20q/%2B%25%26%3C%01%0A%E6%96%87"]);
    let encoded = server.get("?list-type=2&encoding-type=url&prefix=p%20&start-after=p%20%2B");
    assert_eq!(encoded.element("Key").as_deref(), Some("p%20q%2F%2B%25%26%3C%01%0A%E6%96%87"));
    assert_eq!(encoded.element("Prefix").as_deref(), Some("p%20"));
    assert_eq!(encoded.element("StartAfter").as_deref(), Some("p%20%2B"));
    assert_eq!(encoded.element("EncodingType").as_deref(), Some("url"));
    let plain = server.get("?list-type=2");
    assert_eq!(plain.element("Key").as_deref(), Some("p q/+%&amp;&lt;&#x1;\n文"));
    assert_eq!(plain.element("EncodingType"), None);
}

#[test]
fn the_owner_is_shown_where_the_version_shows_it() {
    let server = with_keys(&["k"]);
    assert!(server.get("").element("Owner").is_some());
    assert!(server.get("?list-type=2").element("Owner").is_none());
    assert!(server.get("?list-type=2&fetch-owner=true").element("Owner").is_some());
}
