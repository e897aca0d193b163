//! Parses the values of settings.

use std::{collections::BTreeMap, fmt};

use shoes_vz_process::{
    settings::{Values, scalar},
    units,
};

use crate::fleet::{labels::UnknownLabels, requirements::VmRequirements};

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

/// Parses `[resource_types.large]`, `[labels."macos-15"]` and so on; `what` is the name of the table in the file.
pub(super) fn requirements_table<K: Ord, E: fmt::Display>(
    values: &mut Values,
    what: &str,
    key: impl Fn(&str) -> Result<K, E>,
) -> BTreeMap<K, VmRequirements> {
    let mut parsed = BTreeMap::new();
    let Some((value, path)) = values.table(what) else { return parsed };
    let origin = path.display();
    let Some(table) = value.as_table() else {
        values.general_mistake(format_args!("{origin}: {what} must be a table"));
        return parsed;
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
        let VmRequirements { mut template, mut size } = VmRequirements::default();
        for (field, value) in fields {
            let text = scalar(value).unwrap_or_default();
            let done = match field.as_str() {
                "cpus" => text
                    .parse()
                    .map(|n| size.cpus = n)
                    .map_err(|_| format!("{text:?} is not a number of CPUs")),
                "memory" => units::size(&text).map(|n| size.memory_bytes = n),
                "disk" => units::size(&text).map(|n| size.disk_bytes = n),
                "template" => match value.as_str() {
                    Some(name) if !name.trim().is_empty() => {
                        name.clone_into(&mut template);
                        Ok(())
                    }
                    _ => Err("it must be the name of a template, a string that is not empty".into()),
                },
                _ => Err("unknown key; the known keys are template, cpus, memory and disk".into()),
            };
            if let Err(e) = done {
                values.general_mistake(format_args!("{at}.{field}: {e}"));
            }
        }
        if parsed.insert(key, VmRequirements { template, size }).is_some() {
            values.general_mistake(format_args!("{at} is given twice, in different spellings"));
        }
    }
    parsed
}

/// A label as the tables store it.
pub(super) fn label(text: &str) -> Result<String, &'static str> {
    match text.trim() {
        "" => Err("a label cannot be empty"),
        label => Ok(label.to_ascii_lowercase()),
    }
}
