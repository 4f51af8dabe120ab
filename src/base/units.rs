//! Sizes, rates and durations as people write them: `8MiB`, `10M/s`, `15m`.

use std::time::Duration;

use super::limits::{GIB, KIB, MIB, TIB};

/// The text is not a size, rate or duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}; write it like {example}")]
pub struct BadUnit {
    text: String,
    what: &'static str,
    example: &'static str,
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim()))
}

/// Bytes: a number and `B`, `KiB`, `MiB`, `GiB`, `TiB`; `k`, `M`, `G`, `T` are the same powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, BadUnit> {
    let bad = || BadUnit { text: text.into(), what: "size", example: "8MiB" };
    let (number, unit) = split(text).ok_or_else(bad)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => GIB,
        "t" | "tb" | "tib" => TIB,
        _ => return Err(bad()),
    };
    number.checked_mul(factor).ok_or_else(bad)
}

/// Bytes a second: a size and `/s`.
pub fn parse_rate(text: &str) -> Result<u64, BadUnit> {
    let bad = || BadUnit { text: text.into(), what: "rate", example: "10MiB/s" };
    parse_size(text.trim().strip_suffix("/s").ok_or_else(bad)?).map_err(|_| bad())
}

/// A number and `ms`, `s`, `m`, `h` or `d`.
pub fn parse_duration(text: &str) -> Result<Duration, BadUnit> {
    let bad = || BadUnit { text: text.into(), what: "duration", example: "500ms, 60s, 15m, 2h or 7d" };
    let (number, unit) = split(text).ok_or_else(bad)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(bad)
}

/// A size for people: three digits or so and a binary unit.
pub fn format_size(bytes: u64) -> String {
    let units = [("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)];
    match units.iter().find(|(_, factor)| bytes >= *factor) {
        Some((unit, factor)) if bytes.is_multiple_of(*factor) => format!("{} {unit}", bytes / factor),
        Some((unit, factor)) => format!("{:.1} {unit}", bytes as f64 / *factor as f64),
        None => format!("{bytes} B"),
    }
}

/// A duration in the form that [`parse_duration`] reads.
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    match units.iter().find(|(_, factor)| millis >= *factor && millis.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", millis / factor),
        None => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("8MiB"), Ok(8 * MIB));
        assert_eq!(parse_size("8m"), Ok(8 * MIB));
        assert_eq!(parse_size("100 KiB"), Ok(100 * KIB));
        assert_eq!(parse_size("17"), Ok(17));
        for bad in ["", "MiB", "8 parsecs", "-1", "1.5GiB", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_rate("10MiB/s"), Ok(10 * MIB));
        assert!(parse_rate("10MiB").is_err());
    }

    #[test]
    fn durations_name_their_unit() {
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_duration("15").is_err());
        for text in ["15m", "250ms", "1d", "90s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(format_size(512), "512 B");
        assert_eq!(format_size(8 * MIB), "8 MiB");
        assert_eq!(format_size(1_500_000), "1.4 MiB");
    }
}
