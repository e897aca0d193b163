//! The limits of a job's setup script and labels. A request beyond them would fail later: on an agent's stream, in a guest,
//! or at GitHub.

/// Bytes of a setup script: half of the largest message that server and agent accept (16 MiB), since the command that
/// carries it to an agent has further fields. myshoes' scripts have some tens of KiB.
pub const MAX_SCRIPT: usize = 8 << 20;
/// Labels of a job: as many as a runner can have (GitHub's REST description of a runner's `labels`).
pub const MAX_LABELS: usize = 100;
/// Characters of a label: the Actions runner's limit (`LabelsValidator` of actions/runner).
pub const MAX_LABEL: usize = 256;

/// Why a request can never work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    #[error(
        "setup_script has {0} bytes; at most {MAX_SCRIPT} (8 MiB) are allowed. Have the script download large files"
    )]
    Script(usize),
    #[error("the job has {0} labels; GitHub takes at most {MAX_LABELS}")]
    Labels(usize),
    #[error("label {at} ({start:?}…) has {length} characters; GitHub takes at most {MAX_LABEL}")]
    LongLabel {
        /// Which label, from 1.
        at: usize,
        start: String,
        length: usize,
    },
    #[error("label {0} is empty; leave it out, or name one")]
    EmptyLabel(usize),
    #[error(
        "label {at} ({label:?}): character {position} is {character:?}; a label cannot have control characters"
    )]
    ControlCharacter {
        /// Which label, from 1.
        at: usize,
        label: String,
        /// In the label, from 1.
        position: usize,
        character: char,
    },
}

/// Whether a setup script is within bounds. Takes only its length, because the script is a secret.
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
        if let Some((character, position)) = label.chars().zip(1..).find(|(c, _)| c.is_control()) {
            return Err(OutOfBounds::ControlCharacter { at, label: label.clone(), position, character });
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
            let error = check_labels(&bad).unwrap_err().to_string();
            assert!(error.contains(part) && error.len() < 400, "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn labels_within_bounds_are_accepted_and_no_others(
            labels in proptest::collection::vec(".{0,300}", 0..120),
        ) {
            let fits = labels.len() <= 100
                && labels.iter().all(|l| l.chars().count() <= 256 && !l.chars().any(char::is_control));
            proptest::prop_assert_eq!(check_labels(&labels).is_ok(), fits);
        }
    }
}
