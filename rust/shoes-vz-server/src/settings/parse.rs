//! From text to values.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::fleet::{demand::Demand, labels::UnknownLabels};

use super::LogFormat;

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        other => Err(format!("{other:?} is neither json nor text")),
    }
}

pub(super) fn unknown_labels(text: &str) -> Result<UnknownLabels, String> {
    match text {
        "wait" => Ok(UnknownLabels::Wait),
        "refuse" => Ok(UnknownLabels::Refuse),
        "ignore" => Ok(UnknownLabels::Ignore),
        other => Err(format!("{other:?} is not wait, refuse or ignore")),
    }
}

pub(super) fn labels(text: &str) -> Result<Vec<String>, String> {
    Ok(text.split(',').map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect())
}

/// `1500ms`, `30s`, `5m`, `2h`, `7d`, or `0`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no time; write it as 500ms, 30s, 5m, 2h or 7d");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (digits, unit) = text.split_at(at);
    let count: u64 = digits.parse().map_err(|_| bad())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    // A hundred years are enough, and keep every sum of times within its type.
    const MOST: u64 = 100 * 366 * 86_400_000;
    count.checked_mul(millis).filter(|ms| *ms <= MOST).map(Duration::from_millis).ok_or_else(bad)
}

/// A time that is not 0.
pub(super) fn some_time(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("it must be more than 0".into()),
        time => Ok(time),
    }
}

/// `8GiB`, `512MiB`, or bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size; write it as 8GiB, 512MiB or in bytes");
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let count: u64 = digits.parse().map_err(|_| bad())?;
    let unit = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1u64 << 40,
        _ => return Err(bad()),
    };
    count.checked_mul(unit).ok_or_else(bad)
}

/// A TOML value as the text a flag would have; an array as a flag's list.
pub(super) fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        toml::Value::Array(all) => {
            let texts: Option<Vec<&str>> = all.iter().map(toml::Value::as_str).collect();
            texts.map(|t| t.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// `[resource_types.large]`, `[labels."macos-15"]` and their likes, which are in the table called `what`.
pub(super) fn demands<K: Ord, E: fmt::Display>(
    what: &str,
    value: &toml::Value,
    key: impl Fn(&str) -> Result<K, E>,
    origin: &str,
    mistakes: &mut Vec<String>,
) -> BTreeMap<K, Demand> {
    let mut demands = BTreeMap::new();
    let Some(table) = value.as_table() else {
        mistakes.push(format!("{origin}: {what} is no table"));
        return demands;
    };
    for (name, value) in table {
        let at = format!("{origin}: {what}.{name}");
        let (key, fields) = match (key(name), value.as_table()) {
            (Ok(key), Some(fields)) => (key, fields),
            (Err(e), _) => {
                mistakes.push(format!("{at}: {e}"));
                continue;
            }
            (_, None) => {
                mistakes.push(format!("{at} is no table"));
                continue;
            }
        };
        let Demand { mut template, mut shape } = Demand::default();
        for (field, value) in fields {
            let text = scalar(value).unwrap_or_default();
            let done = match field.as_str() {
                "cpus" => text.parse().map(|n| shape.cpus = n).map_err(|_| format!("{text:?} is no number")),
                "memory" => bytes(&text).map(|n| shape.memory_bytes = n),
                "disk" => bytes(&text).map(|n| shape.disk_bytes = n),
                "template" => match value.as_str() {
                    Some(name) if !name.trim().is_empty() => {
                        name.clone_into(&mut template);
                        Ok(())
                    }
                    _ => Err("it is no template's name".into()),
                },
                _ => Err("it is not known; known are template, cpus, memory, disk".into()),
            };
            if let Err(e) = done {
                mistakes.push(format!("{at}.{field}: {e}"));
            }
        }
        if demands.insert(key, Demand { template, shape }).is_some() {
            mistakes.push(format!("{at} is there twice, in another spelling"));
        }
    }
    demands
}

/// A label as the tables know it.
pub(super) fn label(text: &str) -> Result<String, &'static str> {
    match text.trim() {
        "" => Err("a label cannot be empty"),
        label => Ok(label.to_ascii_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read_with_their_units() {
        assert_eq!(time("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(bytes("8GiB"), Ok(8 << 30));
        assert_eq!(bytes("4096"), Ok(4096));
        for bad in ["", "5", "m", "5 m", "-1s", "99999999999d", "1y"] {
            assert!(time(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "8GB", "GiB", "99999999999TiB"] {
            assert!(bytes(bad).is_err(), "{bad:?}");
        }
    }
}
