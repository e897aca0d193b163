//! Words the control pipe takes, one a line.

use crate::cmdline::Test;

/// What somebody inside the guest, or the kernel, asks of the first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// `poweroff`: the host sees a guest that powered off.
    PowerOff,
    /// `reboot`: the host sees a guest that reset itself.
    Reboot,
    /// `panic`: the kernel crashes at once. For tests.
    Panic,
}

/// Reads one line; `Err` is a sentence for the console.
pub(crate) fn parse(line: &str, test: Test) -> Result<Wish, String> {
    match (line.trim(), test) {
        ("poweroff", _) => Ok(Wish::PowerOff),
        ("reboot", _) => Ok(Wish::Reboot),
        ("panic", Test::On) => Ok(Wish::Panic),
        ("panic", Test::Off) => Err("panic is refused: the kernel command line has no shoesvz.test=1".into()),
        (other, _) => Err(format!("{other:?} is neither poweroff nor reboot")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_off_and_reboot_are_understood_with_or_without_a_line_end() {
        assert_eq!(parse("poweroff\n", Test::Off), Ok(Wish::PowerOff));
        assert_eq!(parse("reboot", Test::On), Ok(Wish::Reboot));
    }

    #[test]
    fn a_panic_is_for_tests_alone() {
        assert_eq!(parse("panic", Test::On), Ok(Wish::Panic));
        assert!(parse("panic", Test::Off).unwrap_err().contains("shoesvz.test=1"));
    }

    #[test]
    fn anything_else_is_refused_in_words() {
        assert!(parse("format c:", Test::On).unwrap_err().contains("format c:"));
        assert!(parse("", Test::On).is_err());
    }
}
