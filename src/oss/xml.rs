//! Reading and writing the service's XML: a walk over elements with bounded size and depth, and text escapes.
//!
//! Namespaces, attributes, comments and processing instructions are of no account; a document type is refused, so
//! that entities cannot grow. What the elements mean is up to the operations.

use quick_xml::Reader;
use quick_xml::events::{BytesRef, Event};

use super::encode;
use crate::base::limits::{XML_BYTES_MAX, XML_DEPTH_MAX};

/// Why a body is not the XML that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum XmlError {
    #[error("the reply is longer than {XML_BYTES_MAX} bytes")]
    TooLong,
    #[error("the reply is nested too deeply")]
    TooDeep,
    #[error("the reply is not XML: {0}")]
    Malformed(String),
    #[error("the reply begins with `{found}` instead of `{wanted}`")]
    Root { found: String, wanted: &'static str },
    #[error("the reply lacks a sound `{0}`")]
    Missing(&'static str),
}

/// The path of the open elements below the root, and the text of the innermost one.
#[derive(Default)]
struct Walk {
    path: String,
    /// Length of `path` before each open element below the root was added.
    lengths: Vec<usize>,
    text: String,
}

impl Walk {
    fn open(&mut self, name: &[u8]) -> Result<(), XmlError> {
        if self.lengths.len() + 2 > XML_DEPTH_MAX {
            return Err(XmlError::TooDeep);
        }
        self.lengths.push(self.path.len());
        if !self.path.is_empty() {
            self.path.push('/');
        }
        self.path.push_str(utf8(name)?);
        self.text.clear();
        Ok(())
    }

    fn close(&mut self, visit: &mut impl FnMut(&str, &str) -> Result<(), XmlError>) -> Result<(), XmlError> {
        visit(&self.path, &self.text)?;
        self.path.truncate(self.lengths.pop().unwrap_or_default());
        self.text.clear();
        Ok(())
    }
}

/// Calls `visit` at the end of each element below the root with its path (`Contents/Key`) and, for one without
/// children, its text, verbatim. Whoever reads numbers, dates or codes trims.
pub(super) fn walk(
    xml: &[u8],
    root: &'static str,
    mut visit: impl FnMut(&str, &str) -> Result<(), XmlError>,
) -> Result<(), XmlError> {
    if xml.len() > XML_BYTES_MAX {
        return Err(XmlError::TooLong);
    }
    let text = utf8(xml)?;
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    let mut walk = Walk::default();
    expect_root(&mut reader, root)?;
    loop {
        match reader.read_event().map_err(malformed)? {
            Event::Start(tag) => walk.open(tag.local_name().as_ref())?,
            Event::Empty(tag) => {
                walk.open(tag.local_name().as_ref())?;
                walk.close(&mut visit)?;
            }
            Event::End(_) if walk.lengths.is_empty() => return expect_end(&mut reader),
            Event::End(_) => walk.close(&mut visit)?,
            // XML 1.1 would make line feeds of further characters.
            Event::Text(text) => walk.text.push_str(&text.xml10_content().map_err(malformed)?),
            Event::CData(text) => walk.text.push_str(&text.decode().map_err(malformed)?),
            Event::GeneralRef(reference) => walk.text.push(resolve(&reference)?),
            Event::Comment(_) | Event::PI(_) => {}
            Event::Decl(_) | Event::DocType(_) => return Err(malformed("a declaration inside the document")),
            Event::Eof => return Err(malformed("it ends early")),
        }
    }
}

/// Reads up to the start tag of the root.
fn expect_root(reader: &mut Reader<&[u8]>, wanted: &'static str) -> Result<(), XmlError> {
    loop {
        match reader.read_event().map_err(malformed)? {
            Event::Start(tag) if tag.local_name().as_ref() == wanted.as_bytes() => return Ok(()),
            Event::Start(tag) | Event::Empty(tag) => {
                let found = String::from_utf8_lossy(tag.local_name().as_ref()).chars().take(64).collect();
                return Err(XmlError::Root { found, wanted });
            }
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
            Event::Text(text) if text.trim_ascii().is_empty() => {}
            Event::Eof => return Err(malformed("it is empty")),
            _ => return Err(malformed("text before the root")),
        }
    }
}

/// Nothing but white space and comments may follow the root.
fn expect_end(reader: &mut Reader<&[u8]>) -> Result<(), XmlError> {
    loop {
        match reader.read_event().map_err(malformed)? {
            Event::Eof => return Ok(()),
            Event::Comment(_) | Event::PI(_) => {}
            Event::Text(text) if text.trim_ascii().is_empty() => {}
            _ => return Err(malformed("text after the root")),
        }
    }
}

fn resolve(reference: &BytesRef<'_>) -> Result<char, XmlError> {
    if let Some(char) = reference.resolve_char_ref().map_err(malformed)? {
        return Ok(char);
    }
    match &**reference {
        b"amp" => Ok('&'),
        b"lt" => Ok('<'),
        b"gt" => Ok('>'),
        b"quot" => Ok('"'),
        b"apos" => Ok('\''),
        _ => Err(malformed("an unknown entity")),
    }
}

fn malformed(why: impl ToString) -> XmlError {
    XmlError::Malformed(why.to_string())
}

fn utf8(bytes: &[u8]) -> Result<&str, XmlError> {
    std::str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8"))
}

/// A number that may stand in white space; `name` is for the error.
pub(super) fn number<T: std::str::FromStr>(text: &str, name: &'static str) -> Result<T, XmlError> {
    text.trim().parse().map_err(|_| XmlError::Missing(name))
}

/// A word that may stand in white space; `None` where there is none.
pub(super) fn word(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.into())
}

/// `true` in any case.
pub(super) fn flag(text: &str) -> bool {
    text.trim().eq_ignore_ascii_case("true")
}

/// Undoes `encoding-type=url` where the reply says that it holds.
pub(super) fn decode_if(encoded: bool, text: &mut String) {
    if encoded && text.contains('%') {
        *text = encode::decode(text).into_owned();
    }
}

/// Whether an `<EncodingType>` is `url`.
pub(super) fn is_url(text: &str) -> bool {
    text.trim().eq_ignore_ascii_case("url")
}

/// Whether XML 1.0 can carry the text at all, escaped or not.
pub(super) fn can_carry(text: &str) -> bool {
    text.chars().all(|c| matches!(c, '\t' | '\n' | '\r') || (c >= ' ' && !matches!(c, '\u{fffe}' | '\u{ffff}')))
}

/// Appends `text` with what XML gives a meaning, or would normalise, escaped.
pub(super) fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\t' => out.push_str("&#x9;"),
            '\n' => out.push_str("&#xA;"),
            '\r' => out.push_str("&#xD;"),
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaves(xml: &str) -> Result<Vec<(String, String)>, XmlError> {
        let mut seen = Vec::new();
        walk(xml.as_bytes(), "R", |path, text| {
            seen.push((path.into(), text.into()));
            Ok(())
        })?;
        Ok(seen)
    }

    #[test]
    fn elements_are_told_by_path_with_their_text() {
        let xml = "\u{feff}<?xml version='1.0'?>\n<!-- c --><x:R xmlns:x='y' a='b'> <a>1<!-- c -->&amp;<![CDATA[<2>]]>\
                   </a> <b><c> z\u{2028}&#x41;&#10; </c><d/></b></x:R>\n";
        let pairs = [("a", "1&<2>"), ("b/c", " z\u{2028}A\n "), ("b/d", ""), ("b", "")];
        assert_eq!(leaves(xml).unwrap(), pairs.map(|(path, text)| (path.into(), text.into())));
    }

    #[test]
    fn garbage_is_an_error() {
        for xml in [
            "",
            " ",
            "text",
            "<R>",
            "<R><a></R>",
            "<R><a></b></R>",
            "<R/>tail",
            "<R></R><R></R>",
            "<R></R>tail",
            "<R>&unknown;</R>",
            "<R>&#0;</R>",
            "<R>&#xFFFFFFFF;</R>",
            "<!DOCTYPE R [<!ENTITY a 'b'>]><R></R>",
            "<R><!DOCTYPE R></R>",
            "<R><a",
            "<!DOCTYPE html><html><body>Sign in</body></html>",
        ] {
            assert!(matches!(leaves(xml), Err(XmlError::Malformed(_) | XmlError::Root { .. })), "{xml}");
        }
        let html = leaves("<html><body>Sign in</body></html>");
        assert_eq!(html, Err(XmlError::Root { found: "html".into(), wanted: "R" }));
        assert!(walk(b"<R>\xff</R>", "R", |_, _| Ok(())).is_err());
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let nested = |depth: usize| format!("<R>{}{}</R>", "<a>".repeat(depth), "</a>".repeat(depth));
        assert!(leaves(&nested(XML_DEPTH_MAX - 1)).is_ok());
        assert_eq!(leaves(&nested(XML_DEPTH_MAX)), Err(XmlError::TooDeep));
        assert_eq!(leaves(&nested(100_000)), Err(XmlError::TooDeep));
        let long = format!("<R>{}</R>", " ".repeat(XML_BYTES_MAX));
        assert_eq!(leaves(&long), Err(XmlError::TooLong));
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_read_back(text in "\\PC*[\t\n\r&<>\"']*\\PC*") {
            prop_assume!(can_carry(&text));
            let mut xml = String::from("<R><a>");
            push_escaped(&mut xml, &text);
            xml.push_str("</a></R>");
            prop_assert_eq!(leaves(&xml).unwrap(), vec![("a".to_owned(), text)]);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
            let xml = b"<?xml version='1.0'?><R><a>1&amp;&#65;</a><b><c/><![CDATA[x]]></b></R>";
            let cut = cut.min(xml.len());
            prop_assert!(walk(&bytes, "R", |_, _| Ok(())).is_err());
            prop_assert_eq!(walk(&xml[..cut], "R", |_, _| Ok(())).is_ok(), cut == xml.len());
        }
    }
}
