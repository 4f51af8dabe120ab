//! DeleteObject and DeleteMultipleObjects (OSS reference §§7.9 and 7.10).

use std::convert::Infallible;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::HeaderName;
use http::header::CONTENT_TYPE;
use md5::{Digest as _, Md5};

use crate::base::ObjectKey;
use crate::base::crash;
use crate::base::limits::PAGE_MAX;
use crate::oss::client::Client;
use crate::oss::error::Error;
use crate::oss::request::Request;
use crate::oss::transport::Expect;
use crate::oss::types::{Body, Operation};
use crate::oss::xml::{self, XmlError};

/// Largest body of DeleteMultipleObjects, short of the 2 MB that are allowed.
const BODY_BYTES_MAX: usize = 1_900_000;
const HEAD: &str = "<Delete><Quiet>false</Quiet>";
const TAIL: &str = "</Delete>";
const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");

impl Client {
    /// Succeeds whether or not the object was there.
    pub async fn delete_object(&self, key: &ObjectKey) -> Result<(), Error> {
        let request = Request::of_object(Operation::DeleteObject, key)?;
        crash::point("delete-sending");
        let deleted = self.ask(&request, Expect::Nothing, |_| Ok::<_, Infallible>(())).await;
        crash::point("delete-answered");
        deleted
    }

    /// At most 1000 keys; returns those that the service says are gone. Under pressure it leaves some out: ask again
    /// for these. Keys that XML cannot carry are deleted one by one, and after an error some may be gone already.
    pub async fn delete_objects(&self, keys: &[ObjectKey]) -> Result<Vec<String>, Error> {
        if keys.len() > PAGE_MAX as usize {
            let message = format!("at most {PAGE_MAX} keys can be deleted at once");
            return Err(Error::unsendable(Operation::DeleteMultipleObjects, self.bucket(), message));
        }
        let (plain, odd): (Vec<_>, Vec<_>) = keys.iter().partition(|key| xml::can_carry(key.as_str()));
        let mut gone = Vec::with_capacity(keys.len());
        for body in bodies(&plain) {
            gone.append(&mut self.delete_batch(body).await?);
        }
        for key in odd {
            self.delete_object(key).await?;
            gone.push(key.as_str().to_owned());
        }
        Ok(gone)
    }

    async fn delete_batch(&self, body: String) -> Result<Vec<String>, Error> {
        let sum = BASE64.encode(Md5::digest(&body));
        let request = Request::of_bucket(Operation::DeleteMultipleObjects)
            .param("delete", "")
            .param("encoding-type", "url")
            .header(CONTENT_TYPE, "application/xml")?
            .header(CONTENT_MD5, &sum)?
            .body(Body::Bytes(Bytes::from(body)));
        crash::point("multi-delete-sending");
        let deleted = self.ask(&request, Expect::Xml, |reply| parse_deleted(&reply.xml)).await;
        crash::point("multi-delete-answered");
        deleted
    }
}

/// The bodies that name all keys, as few as the bound allows.
fn bodies(keys: &[&ObjectKey]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for key in keys {
        let mut object = String::from("<Object><Key>");
        xml::push_escaped(&mut object, key.as_str());
        object.push_str("</Key></Object>");
        match out.last_mut() {
            Some(body) if body.len() + object.len() + TAIL.len() <= BODY_BYTES_MAX => body.push_str(&object),
            _ => out.push(format!("{HEAD}{object}")),
        }
    }
    for body in &mut out {
        body.push_str(TAIL);
    }
    out
}

fn parse_deleted(body: &[u8]) -> Result<Vec<String>, XmlError> {
    let (mut keys, mut encoded) = (Vec::new(), false);
    xml::walk(body, "DeleteResult", |path, text| {
        match path {
            "EncodingType" => encoded = xml::is_url(text),
            "Deleted/Key" => keys.push(text.to_owned()),
            _ => {}
        }
        Ok(())
    })?;
    keys.iter_mut().for_each(|key| xml::decode_if(encoded, key));
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(texts: &[&str]) -> Vec<ObjectKey> {
        texts.iter().map(|text| ObjectKey::parse(text).unwrap()).collect()
    }

    #[test]
    fn the_request_is_as_the_sample() {
        let keys = keys(&["a & b.txt", "tab\tnl\ncr\r", "<q>\"'"]);
        let wanted = include_str!("../../../tests/data/xml/delete-request.xml");
        assert_eq!(bodies(&keys.iter().collect::<Vec<_>>()), [wanted.trim_end()]);
        assert!(bodies(&[]).is_empty());
    }

    #[test]
    fn long_keys_are_spread_over_bodies() {
        let long = ObjectKey::parse(&"\"".repeat(1000)).unwrap();
        let bodies = bodies(&vec![&long; 1000]);
        assert_eq!(bodies.len(), 4);
        assert!(bodies.iter().all(|body| body.len() <= BODY_BYTES_MAX));
        assert_eq!(bodies.iter().map(|body| body.matches("<Object>").count()).sum::<usize>(), 1000);
    }

    #[test]
    fn the_sample_reply_is_read() {
        let gone = parse_deleted(include_bytes!("../../../tests/data/xml/delete-result.xml")).unwrap();
        assert_eq!(gone, ["a & b.txt", "tab\tnl\ncr\r", "<q>\"'"]);
        assert_eq!(
            parse_deleted(b"<DeleteResult><Deleted><Key>a%20</Key></Deleted></DeleteResult>").unwrap(),
            ["a%20"]
        );
    }
}
