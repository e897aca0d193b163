//! From text to values.

use std::{collections::BTreeMap, fmt};

use shoes_vz_process::{
    settings::{Values, scalar},
    units,
};

use crate::fleet::{demand::Demand, labels::UnknownLabels};

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

/// `[resource_types.large]`, `[labels."macos-15"]` and their likes, which are in the file's table called `what`.
pub(super) fn demands<K: Ord, E: fmt::Display>(
    values: &mut Values,
    what: &str,
    key: impl Fn(&str) -> Result<K, E>,
) -> BTreeMap<K, Demand> {
    let mut demands = BTreeMap::new();
    let Some((value, path)) = values.table(what) else { return demands };
    let origin = path.display();
    let Some(table) = value.as_table() else {
        values.general_mistake(format_args!("{origin}: {what} must be a table"));
        return demands;
    };
    for (name, value) in table {
        let at = format!("{origin}: {what}.{name}");
        let (key, fields) = match (key(name), value.as_table()) {
            (Ok(key), Some(fields)) => (key, fields),
            (Err(e), _) => {
                values.general_mistake(format_args!("{at}: {e}"));
                continue;
            }
            (_, None) => {
                values.general_mistake(format_args!("{at} must be a table"));
                continue;
            }
        };
        let Demand { mut template, mut shape } = Demand::default();
        for (field, value) in fields {
            let text = scalar(value).unwrap_or_default();
            let done = match field.as_str() {
                "cpus" => text
                    .parse()
                    .map(|n| shape.cpus = n)
                    .map_err(|_| format!("{text:?} is not a number of CPUs")),
                "memory" => units::size(&text).map(|n| shape.memory_bytes = n),
                "disk" => units::size(&text).map(|n| shape.disk_bytes = n),
                "template" => match value.as_str() {
                    Some(name) if !name.trim().is_empty() => {
                        name.clone_into(&mut template);
                        Ok(())
                    }
                    _ => Err("it must be the name of a template: a string that is not empty".into()),
                },
                _ => Err("it is not a known key; known are template, cpus, memory and disk".into()),
            };
            if let Err(e) = done {
                values.general_mistake(format_args!("{at}.{field}: {e}"));
            }
        }
        if demands.insert(key, Demand { template, shape }).is_some() {
            values.general_mistake(format_args!("{at} is there twice, in another spelling"));
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
