//! Writing the service's XML, and reading the two documents clients send.
//!
//! Shares nothing with the client's parser, so that an error in one is caught by the other. What control
//! characters become in XML 1.0 is nobody's promise; they are written as character references.

use std::fmt::{Display, Write};

use quick_xml::Reader;
use quick_xml::events::Event;

use crate::base::limits::XML_DEPTH_MAX;

/// A document being written.
#[derive(Debug)]
pub(crate) struct Document {
    out: String,
    open: Vec<&'static str>,
}

impl Document {
    pub(crate) fn new(root: &'static str) -> Self {
        let mut document = Self { out: String::from(r#"<?xml version="1.0" encoding="UTF-8"?>"#), open: Vec::new() };
        document.open(root);
        document
    }

    pub(crate) fn open(&mut self, name: &'static str) -> &mut Self {
        self.raw("<", name, ">");
        self.open.push(name);
        self
    }

    pub(crate) fn close(&mut self) -> &mut Self {
        if let Some(name) = self.open.pop() {
            self.raw("</", name, ">");
        }
        self
    }

    pub(crate) fn element(&mut self, name: &'static str, value: impl Display) -> &mut Self {
        self.raw("<", name, ">");
        self.out.push_str(&escape(&value.to_string()));
        self.raw("</", name, ">");
        self
    }

    /// The text of the open element.
    pub(crate) fn text(&mut self, value: &str) {
        self.out.push_str(&escape(value));
    }

    pub(crate) fn finish(mut self) -> String {
        while !self.open.is_empty() {
            self.close();
        }
        self.out
    }

    fn raw(&mut self, before: &str, name: &str, after: &str) {
        self.out.push_str(before);
        self.out.push_str(name);
        self.out.push_str(after);
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' => out.push('\n'),
            c if c.is_control() => write!(out, "&#x{:X};", u32::from(c)).expect("writing to a string"),
            c => out.push(c),
        }
    }
    out
}

/// An element that was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) children: Vec<Element>,
}

/// The text is not a document this server can read.
#[derive(Debug, thiserror::Error)]
#[error("the XML is not well-formed")]
pub(crate) struct Malformed;

impl Element {
    /// Reads a document: its root element.
    pub(crate) fn parse(text: &str) -> Result<Self, Malformed> {
        let mut reader = Reader::from_str(text);
        let mut open = vec![Self::default()];
        loop {
            match reader.read_event().map_err(|_| Malformed)? {
                Event::Start(start) => {
                    let name = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
                    open.push(Self { name, ..Self::default() });
                    if open.len() > XML_DEPTH_MAX {
                        return Err(Malformed);
                    }
                }
                Event::End(_) => close(&mut open)?,
                Event::Empty(start) => {
                    let name = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
                    open.push(Self { name, ..Self::default() });
                    close(&mut open)?;
                }
                Event::Text(part) => last(&mut open)?.text.push_str(&part.decode().map_err(|_| Malformed)?),
                Event::CData(part) => last(&mut open)?.text.push_str(&part.decode().map_err(|_| Malformed)?),
                Event::GeneralRef(name) => {
                    let c = character(&name.decode().map_err(|_| Malformed)?).ok_or(Malformed)?;
                    last(&mut open)?.text.push(c);
                }
                Event::Eof => break,
                _ => {}
            }
        }
        match (open.pop(), open.pop()) {
            (Some(mut document), None) if document.children.len() == 1 => document.children.pop().ok_or(Malformed),
            _ => Err(Malformed),
        }
    }

    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    pub(crate) fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }
}

fn last(open: &mut [Element]) -> Result<&mut Element, Malformed> {
    open.last_mut().ok_or(Malformed)
}

fn close(open: &mut Vec<Element>) -> Result<(), Malformed> {
    let element = open.pop().ok_or(Malformed)?;
    last(open)?.children.push(element);
    Ok(())
}

/// The character an entity stands for: the five of XML, and numbers, control characters included.
fn character(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_escaped() {
        let mut document = Document::new("Root");
        document.element("Key", "a & b<c>\"'\u{1}\r").open("In").element("N", 7);
        assert_eq!(
            document.finish(),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Root><Key>a &amp; b&lt;c&gt;&quot;&apos;&#x1;&#xD;</Key>\
             <In><N>7</N></In></Root>"
        );
    }

    #[test]
    fn the_sample_requests_are_read() {
        let delete = Element::parse(include_str!("../../tests/data/xml/delete-request.xml")).unwrap();
        let keys: Vec<&str> =
            delete.children("Object").filter_map(|object| Some(object.child("Key")?.text.as_str())).collect();
        assert_eq!(keys, ["a & b.txt", "tab\tnl\ncr\r", "<q>\"'"]);

        let complete = Element::parse(include_str!("../../tests/data/xml/complete-multipart-request.xml")).unwrap();
        let part = complete.children("Part").nth(1).unwrap();
        assert_eq!(part.child("PartNumber").unwrap().text, "5");
        assert_eq!(part.child("ETag").unwrap().text, "\"8EFDA8BE206636A695359836FE0ABBBB\"");
    }

    #[test]
    fn control_characters_may_come_as_references() {
        assert_eq!(Element::parse("<K>&#01;&#x9;</K>").unwrap().text, "\u{1}\t");
    }

    #[test]
    fn broken_documents_are_errors() {
        let deep = "<a>".repeat(100);
        for text in ["", "text", "<a>", "<a></b>", "<a/><b/>", "<a>&nope;</a>", "<a>&#xD800;</a>", &deep] {
            assert!(Element::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(text in "\\PC*") {
            let mut document = Document::new("Root");
            document.element("Key", &text);
            let root = Element::parse(&document.finish()).unwrap();
            prop_assert_eq!(&root.child("Key").unwrap().text, &text);
        }
    }
}
