//! Durations; until their callers are renamed.
pub(crate) use shoes_vz_process::units::show_duration as words;
