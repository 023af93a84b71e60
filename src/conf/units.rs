//! Sizes, times and rates as a person writes them.

use super::near;
use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// Bytes: `16KiB`, `1GiB`, or a plain number. `16k` is refused, it is 16384 to nginx and 16000 to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A duration: `30s`, `500ms`, `1h 30m`, or `0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

/// Bytes per second: a [`Size`], with or without `/s` behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

/// Statuses of responses: `200`, or all from one to another, `200-399`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statuses {
    /// The lowest.
    pub from: u16,
    /// The highest, at least `from`.
    pub to: u16,
}

/// A scalar with its own way of being written: one parser for serde and for the check of the whole file.
pub(super) trait Unit: Sized {
    /// Its `format` in the schema.
    const FORMAT: &'static str;
    /// What a message says was expected.
    const EXPECTED: &'static str;
    /// The default, and any other value, as the reference shows it.
    fn write(&self) -> String;
    fn read_number(number: u64) -> Option<Self>;
    fn read_text(text: &str) -> Option<Self>;

    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => Self::read_number(number.as_u64()?),
            Value::String(text) => Self::read_text(text.trim()),
            _ => None,
        }
    }
}

impl Unit for Size {
    const FORMAT: &'static str = "size";
    const EXPECTED: &'static str = "a size such as 16KiB";

    fn write(&self) -> String {
        const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match UNITS.iter().find(|(unit, _)| self.0 != 0 && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => format!("{}{name}", self.0 / unit),
            None => self.0.to_string(),
        }
    }

    fn read_number(number: u64) -> Option<Self> {
        Some(Size(number))
    }

    fn read_text(text: &str) -> Option<Self> {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == ' ');
        if unit.len() == 1 && !unit.eq_ignore_ascii_case("b") {
            return None;
        }
        text.parse::<ByteSize>().ok().map(|size| Size(size.as_u64()))
    }
}

impl Unit for Time {
    const FORMAT: &'static str = "time";
    const EXPECTED: &'static str = "a time such as 30s or 500ms";

    fn write(&self) -> String {
        match self.0.subsec_millis() {
            0 => format!("{}s", self.0.as_secs()),
            _ => format!("{}ms", self.0.as_millis()),
        }
    }

    /// Only zero needs no unit.
    fn read_number(number: u64) -> Option<Self> {
        (number == 0).then_some(Time(Duration::ZERO))
    }

    fn read_text(text: &str) -> Option<Self> {
        humantime::parse_duration(text).ok().map(Time)
    }
}

impl Unit for Rate {
    const FORMAT: &'static str = "rate";
    const EXPECTED: &'static str = "bytes per second such as 100KiB";

    fn write(&self) -> String {
        Size(self.0).write()
    }

    fn read_number(number: u64) -> Option<Self> {
        Some(Rate(number))
    }

    fn read_text(text: &str) -> Option<Self> {
        Size::read_text(text.strip_suffix("/s").unwrap_or(text)).map(|size| Rate(size.0))
    }
}

impl Unit for Statuses {
    const FORMAT: &'static str = "statuses";
    const EXPECTED: &'static str = "a status such as 200, or several such as 200-399";

    fn write(&self) -> String {
        if self.from == self.to { self.from.to_string() } else { format!("{}-{}", self.from, self.to) }
    }

    fn read_number(number: u64) -> Option<Self> {
        let status = u16::try_from(number).ok()?;
        Self::new(status, status)
    }

    fn read_text(text: &str) -> Option<Self> {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        Self::new(from.trim().parse().ok()?, to.trim().parse().ok()?)
    }
}

impl Statuses {
    fn new(from: u16, to: u16) -> Option<Self> {
        (100 <= from && from <= to && to <= 599).then_some(Statuses { from, to })
    }

    /// Is this one of them?
    pub fn contains(&self, status: u16) -> bool {
        (self.from..=self.to).contains(&status)
    }
}

/// What a value of this `format` has to look like, if `value` does not; `None` if it does, or the format is not ours.
pub(super) fn complaint(format: &str, value: &Value) -> Option<&'static str> {
    fn judge<U: Unit>(value: &Value) -> Option<&'static str> {
        U::read(value).is_none().then_some(U::EXPECTED)
    }
    match format {
        Size::FORMAT => judge::<Size>(value),
        Time::FORMAT => judge::<Time>(value),
        Rate::FORMAT => judge::<Rate>(value),
        Statuses::FORMAT => judge::<Statuses>(value),
        _ => None,
    }
}

macro_rules! unit {
    ($unit:ident) => {
        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = Value::deserialize(deserializer)?;
                let wrong = || D::Error::custom(format!("found {value}, expected {}", $unit::EXPECTED));
                $unit::read(&value).ok_or_else(wrong)
            }
        }

        impl Serialize for $unit {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.write())
            }
        }

        impl fmt::Display for $unit {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.write())
            }
        }

        impl JsonSchema for $unit {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($unit).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": ["string", "integer"], "format": $unit::FORMAT })
            }
        }
    };
}

unit!(Size);
unit!(Time);
unit!(Rate);
unit!(Statuses);

/// A closed set of words (or numbers) in the file: reads, writes and describes itself by one table.
pub(super) trait Word: Sized + Clone + PartialEq + 'static {
    const NAME: &'static str;
    fn words() -> Vec<(Value, Self)>;

    fn read<E: serde::de::Error>(value: &Value) -> Result<Self, E> {
        let words = Self::words();
        let found = words.iter().find(|(word, _)| same_word(word, value));
        found.map(|(_, meaning)| meaning.clone()).ok_or_else(|| {
            let all: Vec<String> = words.iter().map(|(word, _)| bare(word)).collect();
            let near = near::matches(&bare(value), all.iter().map(String::as_str));
            E::custom(format!("found {value}, expected one of {}{}", all.join(", "), near::question(&near)))
        })
    }
}

/// Header names are written in any case; nothing else in a closed set differs by case alone.
pub(super) fn same_word(word: &Value, value: &Value) -> bool {
    match (word, value) {
        (Value::String(word), Value::String(value)) => word.eq_ignore_ascii_case(value),
        _ => word == value,
    }
}

/// A value without the quotes of JSON.
pub(super) fn bare(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Serde and schemars for a [`Word`].
macro_rules! word {
    ($word:ty) => {
        impl<'de> serde::Deserialize<'de> for $word {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = serde_json::Value::deserialize(deserializer)?;
                <$word as $crate::conf::units::Word>::read(&value)
            }
        }

        impl serde::Serialize for $word {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let words = <$word as $crate::conf::units::Word>::words();
                match words.iter().find(|(_, meaning)| meaning == self) {
                    Some((word, _)) => word.serialize(serializer),
                    None => Err(serde::ser::Error::custom("a value without a word")),
                }
            }
        }

        impl schemars::JsonSchema for $word {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                <$word as $crate::conf::units::Word>::NAME.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let words = <$word as $crate::conf::units::Word>::words();
                let words: Vec<serde_json::Value> = words.into_iter().map(|(word, _)| word).collect();
                schemars::json_schema!({ "enum": words })
            }
        }
    };
}
pub(super) use word;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_read_and_write() {
        for (text, bytes) in [("16KiB", 16384), ("1GiB", 1 << 30), ("10", 10), ("1.5 MiB", 1572864), ("1KB", 1000)] {
            assert_eq!(Size::read(&json!(text)), Some(Size(bytes)), "{text}");
        }
        for wrong in ["16k", "16KB5", "-1", "", "many", "16M"] {
            assert_eq!(Size::read(&json!(wrong)), None, "{wrong}");
        }
        assert_eq!(Size::read(&json!(-1)), None);
        assert_eq!(
            [Size(0), Size(1000), Size(16384), Size(3 << 30)].map(|size| size.write()),
            ["0", "1000", "16KiB", "3GiB"]
        );
    }

    #[test]
    fn times_need_a_unit_unless_zero() {
        assert_eq!(Time::read(&json!("500ms")), Some(Time(Duration::from_millis(500))));
        assert_eq!(Time::read(&json!("1h 30m")), Some(Time(Duration::from_secs(5400))));
        assert_eq!(Time::read(&json!(0)), Some(Time(Duration::ZERO)));
        assert_eq!(Time::read(&json!(30)), None);
        assert_eq!(Time::read(&json!("30")), None);
        assert_eq!(
            [Time(Duration::from_secs(75)), Time(Duration::from_millis(1500))].map(|t| t.write()),
            ["75s", "1500ms"]
        );
    }

    #[test]
    fn rates_may_say_per_second() {
        assert_eq!(Rate::read(&json!("1MiB/s")), Some(Rate(1 << 20)));
        assert_eq!(Rate::read(&json!(500)), Some(Rate(500)));
        assert_eq!(Rate::read(&json!("1MiB/h")), None);
    }

    #[test]
    fn statuses_are_one_or_a_range() {
        assert_eq!(Statuses::read(&json!(200)), Statuses::new(200, 200));
        assert_eq!(Statuses::read(&json!("200-399")), Statuses::new(200, 399));
        for wrong in ["399-200", "20", "200-600", "2xx", "200-", "-5"] {
            assert_eq!(Statuses::read(&json!(wrong)), None, "{wrong}");
        }
        let range = Statuses::read(&json!("200-204")).unwrap();
        assert_eq!([199, 200, 204, 205].map(|status| range.contains(status)), [false, true, true, false]);
        assert_eq!([range.write(), Statuses::read(&json!(301)).unwrap().write()], ["200-204", "301"]);
    }
}
