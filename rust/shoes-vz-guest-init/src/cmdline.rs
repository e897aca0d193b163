//! The kernel command line, as far as it speaks to this program.

/// Switches of the guest, from `Template.json`'s `kernel_cmdline`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cmdline {
    /// `shoesvz.hostname=NAME`.
    pub(crate) hostname: String,
    /// `shoesvz.test=1`: the control pipe also takes `panic`.
    pub(crate) test: Test,
    /// `shoesvz.trace=1`: the steps of the boot are printed on the console with their times.
    pub(crate) trace: Trace,
}

/// Whether the guest lets itself be broken for a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Test {
    /// It does not.
    Off,
    /// It does.
    On,
}

/// Where the steps of the boot are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trace {
    /// Only in the kernel's log (`dmesg`).
    Log,
    /// On the console too.
    Console,
}

impl Cmdline {
    /// Unknown words are the kernel's own; the last of two equal ones counts, as for the kernel.
    pub(crate) fn parse(text: &str) -> Self {
        let mut parsed = Self { hostname: "runner".into(), test: Test::Off, trace: Trace::Log };
        for word in text.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("shoesvz.hostname", name)) if !name.is_empty() => parsed.hostname = name.into(),
                Some(("shoesvz.test", value)) => {
                    parsed.test = if value == "1" { Test::On } else { Test::Off };
                }
                Some(("shoesvz.trace", value)) => {
                    parsed.trace = if value == "1" { Trace::Console } else { Trace::Log };
                }
                _ => {}
            }
        }
        parsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_be_broken_unless_its_command_line_says_so() {
        assert_eq!(Cmdline::parse("console=ttyS0 quiet").test, Test::Off);
        assert_eq!(Cmdline::parse("quiet shoesvz.test=0").test, Test::Off);
        assert_eq!(Cmdline::parse("shoesvz.test=1 quiet\n").test, Test::On);
        assert_eq!(Cmdline::parse("shoesvz.test=1 shoesvz.test=0").test, Test::Off);
    }

    #[test]
    fn a_hostname_is_taken_and_an_empty_one_is_not() {
        assert_eq!(Cmdline::parse("shoesvz.hostname=mac-7").hostname, "mac-7");
        assert_eq!(Cmdline::parse("shoesvz.hostname=").hostname, "runner");
    }

    #[test]
    fn tracing_goes_to_the_console_only_when_asked() {
        assert_eq!(Cmdline::parse("").trace, Trace::Log);
        assert_eq!(Cmdline::parse("shoesvz.trace=1").trace, Trace::Console);
    }
}
