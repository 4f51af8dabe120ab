//! All keys under a prefix, in their order, page by page.

use std::collections::VecDeque;

use crate::base::limits::PAGE_MAX;
use crate::oss::{Client, Error, ListEntry, ListRequest};

/// Walks a listing; asks for a page when the one before is used up.
#[derive(Debug)]
pub(super) struct Lister {
    client: Client,
    prefix: String,
    ready: VecDeque<ListEntry>,
    token: Option<String>,
    begun: bool,
}

impl Lister {
    pub(super) fn new(client: &Client, prefix: &str) -> Self {
        let (ready, token) = (VecDeque::new(), None);
        Self { client: client.clone(), prefix: prefix.to_owned(), ready, token, begun: false }
    }

    fn is_at_end(&self) -> bool {
        self.begun && self.token.is_none()
    }

    async fn fetch(&mut self) -> Result<(), Error> {
        let request = ListRequest {
            prefix: self.prefix.clone(),
            continuation_token: self.token.take(),
            max_keys: PAGE_MAX,
            ..ListRequest::default()
        };
        let page = self.client.list_objects(&request).await?;
        self.ready.extend(page.entries);
        (self.begun, self.token) = (true, page.next_token);
        Ok(())
    }

    /// Lists ahead, at most so many pages. What is known so far, and whether that is all.
    pub(super) async fn look_ahead(&mut self, pages: usize) -> Result<(&VecDeque<ListEntry>, bool), Error> {
        for _ in 0..pages {
            if self.is_at_end() {
                break;
            }
            self.fetch().await?;
        }
        let all = self.is_at_end();
        Ok((&self.ready, all))
    }

    /// The next key, without its prefix, and what is known of it.
    pub(super) async fn next(&mut self) -> Result<Option<(String, ListEntry)>, Error> {
        while self.ready.is_empty() && !self.is_at_end() {
            self.fetch().await?;
        }
        Ok(self.ready.pop_front().map(|entry| (self.relative(&entry), entry)))
    }

    /// The entry for this key, where it stands; keys must be asked for in their order.
    pub(super) async fn seek(&mut self, relative: &str) -> Result<Option<ListEntry>, Error> {
        loop {
            while self.ready.is_empty() && !self.is_at_end() {
                self.fetch().await?;
            }
            let Some(first) = self.ready.front() else { return Ok(None) };
            match self.relative(first).as_str().cmp(relative) {
                std::cmp::Ordering::Less => drop(self.ready.pop_front()),
                std::cmp::Ordering::Equal => return Ok(self.ready.pop_front()),
                std::cmp::Ordering::Greater => return Ok(None),
            }
        }
    }

    fn relative(&self, entry: &ListEntry) -> String {
        entry.key.strip_prefix(&self.prefix).unwrap_or(&entry.key).to_owned()
    }
}
