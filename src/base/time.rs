//! The only place that asks for the wall clock, and the forms in which times are written on the wire.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

/// The present wall-clock time.
pub fn now() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    SystemTime::now()
}

/// Time since the epoch; a clock before 1970 counts as 1970.
pub fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Microseconds since the epoch.
pub fn micros(at: SystemTime) -> u64 {
    u64::try_from(since_epoch(at).as_micros()).unwrap_or(u64::MAX)
}

/// The time `micros` microseconds after the epoch.
pub fn from_micros(micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros)
}

fn offset(at: SystemTime) -> OffsetDateTime {
    let seconds = i64::try_from(since_epoch(at).as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// IMF-fixdate in GMT, as `Date` and `Last-Modified` carry it.
pub fn http_date(at: SystemTime) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(since_epoch(at).as_secs()))
}

/// The inverse of [`http_date`].
pub fn parse_http_date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim()).ok()
}

/// `20231216T162057Z`, the `x-oss-date` of signature V4.
pub fn basic_utc(at: SystemTime) -> String {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    offset(at).format(format).expect("a year of four digits")
}

/// `2012-02-24T08:43:07.000Z`, as XML bodies carry it. OSS times have whole seconds.
pub fn xml_utc(at: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].000Z");
    offset(at).format(format).expect("a year of four digits")
}

/// RFC 3339 with whole seconds, for people and scripts.
pub fn rfc3339(at: SystemTime) -> String {
    offset(at).format(&Rfc3339).expect("a year of four digits")
}

/// Reads RFC 3339 and the XML form.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let at = OffsetDateTime::parse(text.trim(), &Rfc3339).ok()?;
    let nanos = u64::try_from(at.unix_timestamp_nanos()).ok()?;
    Some(UNIX_EPOCH + Duration::from_nanos(nanos))
}

/// `YYYYMMDD-HHMMSS` in UTC, as conflict copies are named.
pub fn file_stamp(at: SystemTime) -> String {
    let format = format_description!("[year][month][day]-[hour][minute][second]");
    offset(at).format(format).expect("a year of four digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_as_the_reference_shows_it() {
        let at = UNIX_EPOCH + Duration::from_millis(1_709_798_950_123);
        assert_eq!(http_date(at), "Thu, 07 Mar 2024 08:09:10 GMT");
        assert_eq!(basic_utc(at), "20240307T080910Z");
        assert_eq!(xml_utc(at), "2024-03-07T08:09:10.000Z");
        assert_eq!(rfc3339(at), "2024-03-07T08:09:10Z");
        assert_eq!(file_stamp(at), "20240307-080910");
        assert_eq!(parse_http_date("Thu, 07 Mar 2024 08:09:10 GMT"), parse_rfc3339("2024-03-07T08:09:10.000Z"));
        assert_eq!(from_micros(micros(at)), at);
    }
}
