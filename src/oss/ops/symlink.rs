//! PutSymlink and GetSymlink (OSS reference §7.12).

use std::convert::Infallible;

use http::HeaderName;

use super::meta::{Missing, object_meta};
use crate::base::ObjectKey;
use crate::oss::client::Client;
use crate::oss::encode;
use crate::oss::error::Error;
use crate::oss::request::Request;
use crate::oss::transport::{Expect, header};
use crate::oss::types::{ObjectKind, ObjectMeta, Operation, PutHeaders};

const TARGET: HeaderName = HeaderName::from_static("x-oss-symlink-target");

impl Client {
    /// `target` is a key in the same bucket.
    pub async fn put_symlink(&self, key: &ObjectKey, target: &str, headers: &PutHeaders) -> Result<(), Error> {
        let request = Request::of_object(Operation::PutSymlink, key)?
            .param("symlink", "")
            .put_headers(headers)?
            .header(TARGET, &encode::component(target))?;
        self.ask(&request, Expect::Nothing, |_| Ok::<_, Infallible>(())).await
    }

    /// The target, and what the service tells of the link itself; its size is that of the target's name.
    pub async fn get_symlink(&self, key: &ObjectKey) -> Result<(String, ObjectMeta), Error> {
        let request = Request::of_object(Operation::GetSymlink, key)?.param("symlink", "");
        self.ask(&request, Expect::Nothing, |reply| {
            let target = header(&reply.headers, TARGET.as_str()).ok_or(Missing("x-oss-symlink-target"))?;
            let target = encode::decode(target).into_owned();
            let mut meta = object_meta(&reply.headers, target.len() as u64, true)?;
            meta.kind = ObjectKind::Symlink;
            Ok::<_, Missing>((target, meta))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::meta::tests::parse;
    use super::*;

    #[test]
    fn the_target_of_the_sample_is_decoded() {
        let headers = parse(include_str!("../../../tests/data/xml/get-symlink.headers"));
        let target = header(&headers, TARGET.as_str()).map(encode::decode).unwrap();
        assert_eq!(target, "targets/文件 a+b.txt");
        assert_eq!(encode::component(&target), headers[TARGET]);
        assert!(object_meta(&headers, target.len() as u64, true).is_ok());
    }
}
