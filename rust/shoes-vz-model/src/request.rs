//! How large what a job brings along may be. Beyond these limits a request fails later and elsewhere: on an agent's stream,
//! in a guest, at GitHub.

/// Bytes of a setup script: half of the largest message that server and agent take (16 MiB), since the command that takes
/// it to an agent has more in it. myshoes' scripts have a few ten KiB.
pub const MAX_SCRIPT: usize = 8 << 20;
/// Labels of a job, as many as a runner can have (GitHub's REST description of a runner's `labels`).
pub const MAX_LABELS: usize = 100;
/// Characters of a label, as the Actions runner takes them (`LabelsValidator` of actions/runner).
pub const MAX_LABEL: usize = 256;

/// Why a request can never work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    /// See [`MAX_SCRIPT`].
    #[error(
        "setup_script has {0} bytes; at most {MAX_SCRIPT} (8 MiB) are taken. Have the script download what is large"
    )]
    Script(usize),
    /// See [`MAX_LABELS`].
    #[error("the job has {0} labels; GitHub takes at most {MAX_LABELS}")]
    Labels(usize),
    /// See [`MAX_LABEL`].
    #[error("label {at} ({start:?}…) has {length} characters; GitHub takes at most {MAX_LABEL}")]
    LongLabel {
        /// Which, from 1.
        at: usize,
        /// How it begins.
        start: String,
        /// Its length.
        length: usize,
    },
    /// One of them is empty, or blank.
    #[error("label {0} is empty; leave it out, or name one")]
    EmptyLabel(usize),
    /// No runner can have it.
    #[error("label {at} ({label:?}): character {place} is {odd:?}; a label cannot have control characters")]
    OddLabel {
        /// Which, from 1.
        at: usize,
        /// It.
        label: String,
        /// Where in it, from 1.
        place: usize,
        /// What.
        odd: char,
    },
}

/// Whether a setup script is within bounds. Takes its length, so that it need not be read for that.
pub fn check_script(bytes: usize) -> Result<(), OutOfBounds> {
    if bytes > MAX_SCRIPT { Err(OutOfBounds::Script(bytes)) } else { Ok(()) }
}

/// Whether a job's labels are within bounds.
pub fn check_labels(labels: &[String]) -> Result<(), OutOfBounds> {
    if labels.len() > MAX_LABELS {
        return Err(OutOfBounds::Labels(labels.len()));
    }
    for (label, at) in labels.iter().zip(1..) {
        if label.trim().is_empty() {
            return Err(OutOfBounds::EmptyLabel(at));
        }
        let length = label.chars().count();
        if length > MAX_LABEL {
            return Err(OutOfBounds::LongLabel { at, start: label.chars().take(40).collect(), length });
        }
        if let Some((odd, place)) = label.chars().zip(1..).find(|(c, _)| c.is_control()) {
            return Err(OutOfBounds::OddLabel { at, label: label.clone(), place, odd });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_named_with_what_is_beyond_it() {
        assert!(check_script(MAX_SCRIPT).is_ok());
        assert!(check_script(MAX_SCRIPT + 1).unwrap_err().to_string().contains("8388609 bytes"));
        let labels = |n: usize, label: &str| vec![label.to_owned(); n];
        assert!(check_labels(&labels(MAX_LABELS, &"\u{e9}".repeat(MAX_LABEL))).is_ok());
        for (bad, part) in [
            (labels(101, "x"), "101 labels"),
            (labels(1, " "), "label 1 is empty"),
            (labels(1, &"x".repeat(257)), "label 1 (\"xxxx"),
            (labels(1, "a\tb"), "character 2 is '\\t'"),
        ] {
            let told = check_labels(&bad).unwrap_err().to_string();
            assert!(told.contains(part) && told.len() < 400, "{told}");
        }
    }

    proptest::proptest! {
        #[test]
        fn labels_within_bounds_are_taken_and_no_others(
            labels in proptest::collection::vec(".{0,300}", 0..120),
        ) {
            let fits = labels.len() <= 100
                && labels.iter().all(|l| l.chars().count() <= 256 && !l.chars().any(char::is_control));
            proptest::prop_assert_eq!(check_labels(&labels).is_ok(), fits);
        }
    }
}
