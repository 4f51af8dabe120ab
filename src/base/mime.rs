//! Content types by file name, from a small built-in table (posix-metadata reference §6).

const TABLE: &[(&str, &str)] = &[
    ("txt", "text/plain"),
    ("html htm shtml", "text/html"),
    ("css", "text/css"),
    ("csv", "text/csv"),
    ("md", "text/markdown"),
    ("xml", "text/xml"),
    ("js", "application/x-javascript"),
    ("json", "application/json"),
    ("pdf", "application/pdf"),
    ("zip", "application/zip"),
    ("gz", "application/gzip"),
    ("tar", "application/x-tar"),
    ("7z", "application/x-7z-compressed"),
    ("rar", "application/x-rar-compressed"),
    ("rtf", "application/rtf"),
    ("doc", "application/msword"),
    ("xls", "application/vnd.ms-excel"),
    ("ppt", "application/vnd.ms-powerpoint"),
    ("jar war ear", "application/java-archive"),
    ("swf", "application/x-shockwave-flash"),
    ("png", "image/png"),
    ("jpg jpeg", "image/jpeg"),
    ("gif", "image/gif"),
    ("bmp", "image/x-ms-bmp"),
    ("ico", "image/x-icon"),
    ("tif tiff", "image/tiff"),
    ("webp", "image/webp"),
    ("svg svgz", "image/svg+xml"),
    ("mp3", "audio/mpeg"),
    ("ogg", "audio/ogg"),
    ("m4a", "audio/x-m4a"),
    ("mid midi", "audio/midi"),
    ("mp4", "video/mp4"),
    ("webm", "video/webm"),
    ("mov", "video/quicktime"),
    ("avi", "video/x-msvideo"),
    ("wmv", "video/x-ms-wmv"),
    ("flv", "video/x-flv"),
    ("mpeg mpg", "video/mpeg"),
    ("3gp", "video/3gpp"),
    ("ts", "video/MP2T"),
    ("m3u8", "application/x-mpegURL"),
    ("apk", "application/vnd.android.package-archive"),
];

/// The type of a file with this name; `application/octet-stream` for what the table does not know.
pub fn content_type(name: &str) -> &'static str {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).unwrap_or_default();
    TABLE
        .iter()
        .find(|(extensions, _)| extensions.split(' ').any(|known| known == extension))
        .map_or("application/octet-stream", |(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::content_type;

    #[test]
    fn the_last_extension_tells() {
        assert_eq!(content_type("a.HTML"), "text/html");
        assert_eq!(content_type("x.tar.gz"), "application/gzip");
        assert_eq!(content_type("Makefile"), "application/octet-stream");
        assert_eq!(content_type("x."), "application/octet-stream");
    }
}
