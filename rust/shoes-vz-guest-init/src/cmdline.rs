//! The parameters of the kernel command line that this program reads.

/// Switches of the guest, from `Template.json`'s `kernel_cmdline`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cmdline {
    /// `shoesvz.hostname=NAME`.
    pub(crate) hostname: String,
    /// `shoesvz.test=1`: the control pipe also takes `panic`.
    pub(crate) test: TestMode,
    /// `shoesvz.trace=1`: the steps of the boot are printed on the console with their times.
    pub(crate) trace: Trace,
}

/// Whether a test may crash the guest on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TestMode {
    Off,
    On,
}

/// Where the steps of the boot are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trace {
    /// Only in the kernel's log (`dmesg`).
    Log,
    /// On the console too.
    Console,
}

impl Cmdline {
    /// Ignores unknown parameters, which are the kernel's. When a parameter is repeated, the last one counts, as for the
    /// kernel.
    pub(crate) fn parse(text: &str) -> Self {
        let mut parsed = Self { hostname: "runner".into(), test: TestMode::Off, trace: Trace::Log };
        for parameter in text.split_ascii_whitespace() {
            match parameter.split_once('=') {
                Some(("shoesvz.hostname", name)) if !name.is_empty() => parsed.hostname = name.into(),
                Some(("shoesvz.test", value)) => {
                    parsed.test = if value == "1" { TestMode::On } else { TestMode::Off };
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
    fn a_guest_cannot_be_crashed_unless_its_command_line_allows_it() {
        assert_eq!(Cmdline::parse("console=ttyS0 quiet").test, TestMode::Off);
        assert_eq!(Cmdline::parse("quiet shoesvz.test=0").test, TestMode::Off);
        assert_eq!(Cmdline::parse("shoesvz.test=1 quiet\n").test, TestMode::On);
        assert_eq!(Cmdline::parse("shoesvz.test=1 shoesvz.test=0").test, TestMode::Off);
    }

    #[test]
    fn a_hostname_is_used_and_an_empty_one_is_ignored() {
        assert_eq!(Cmdline::parse("shoesvz.hostname=mac-7").hostname, "mac-7");
        assert_eq!(Cmdline::parse("shoesvz.hostname=").hostname, "runner");
    }

    #[test]
    fn tracing_goes_to_the_console_only_when_asked() {
        assert_eq!(Cmdline::parse("").trace, Trace::Log);
        assert_eq!(Cmdline::parse("shoesvz.trace=1").trace, Trace::Console);
    }
}
