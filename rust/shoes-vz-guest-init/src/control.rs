//! Commands of the control pipe, one on each line.

use crate::cmdline::TestMode;

/// How a process in the guest, or the kernel, asks the first process to end the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PowerAction {
    /// `poweroff`: the host sees a guest that powered off.
    PowerOff,
    /// `reboot`: the host sees a guest that reset itself.
    Reboot,
    /// `panic`: the kernel crashes at once. For tests.
    Panic,
}

/// Parses one line. The error is the reason, for the console.
pub(crate) fn parse(line: &str, test: TestMode) -> Result<PowerAction, String> {
    match (line.trim(), test) {
        ("poweroff", _) => Ok(PowerAction::PowerOff),
        ("reboot", _) => Ok(PowerAction::Reboot),
        ("panic", TestMode::On) => Ok(PowerAction::Panic),
        ("panic", TestMode::Off) => {
            Err("panic is refused: the kernel command line does not have shoesvz.test=1".into())
        }
        (other, _) => Err(format!("{other:?} is not a valid command; write poweroff or reboot")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_off_and_reboot_are_accepted_with_and_without_a_line_end() {
        assert_eq!(parse("poweroff\n", TestMode::Off), Ok(PowerAction::PowerOff));
        assert_eq!(parse("reboot", TestMode::On), Ok(PowerAction::Reboot));
    }

    #[test]
    fn a_panic_is_allowed_only_in_test_mode() {
        assert_eq!(parse("panic", TestMode::On), Ok(PowerAction::Panic));
        assert!(parse("panic", TestMode::Off).unwrap_err().contains("shoesvz.test=1"));
    }

    #[test]
    fn anything_else_is_refused_with_its_text() {
        assert!(parse("format c:", TestMode::On).unwrap_err().contains("format c:"));
        assert!(parse("", TestMode::On).is_err());
    }
}
