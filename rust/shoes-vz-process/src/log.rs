//! One log for every program: lines to stderr, as text or JSON, times in UTC (RFC 3339).
//!
//! A log can lose lines; it never changes what the program does. Writing never fails, never panics and, for a service,
//! never waits: a separate thread writes, and while stderr cannot be written (its reader is stopped or has ended, or its
//! disk is full) lines are dropped and counted ([`lost`]). The next line that can be written says how many are missing.

use std::{
    io::{self, IsTerminal as _, Write},
    str::FromStr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        MakeWriter,
        format::Writer as FormatWriter,
        time::{FormatTime as _, SystemTime},
    },
};

/// What a directive of a filter may be when it does not name a module.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// How many lines may wait for stderr.
const QUEUE: usize = 8192;

/// Lines that a writer could not write. Those dropped before they reached it are counted by [`ErrorCounter`].
static LOST: AtomicU64 = AtomicU64::new(0);
/// Of a service's writer.
static DROPPED: std::sync::OnceLock<ErrorCounter> = std::sync::OnceLock::new();

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Text,
    /// One JSON object a line, fields flattened.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is neither \"text\" nor \"json\"")),
        }
    }
}

/// Which lines are written: `info`, or `warn,shoes_vz_agent=debug` (`tracing`'s `EnvFilter`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(String);

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| {
            format!("{text:?} is not a valid log filter ({reason}); write info, or warn,shoes_vz_agent=debug")
        };
        let directives: Vec<&str> = text.split(',').map(str::trim).filter(|d| !d.is_empty()).collect();
        if directives.is_empty() {
            return Err(wrong("it is empty"));
        }
        // `EnvFilter` takes any other text for the name of a module, and then logs only that module.
        let is_level = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
        if let Some(word) = directives.iter().find(|d| !d.contains(['=', '[']) && !is_level(d)) {
            return Err(wrong(&format!("{word:?} is not one of {}", LEVELS.join(", "))));
        }
        match EnvFilter::builder().parse(directives.join(",")) {
            Ok(_) => Ok(Self(directives.join(","))),
            Err(e) => Err(wrong(&e.to_string())),
        }
    }
}

impl Filter {
    /// The default.
    pub fn info() -> Self {
        Self("info".to_owned())
    }

    /// From the first of these environment variables that is set; a filter that is not valid counts as the default.
    pub fn of_env(names: &[&str]) -> Self {
        let set = names.iter().filter_map(|name| std::env::var(name).ok()).find(|text| !text.is_empty());
        set.and_then(|text| text.parse().ok()).unwrap_or_else(Self::info)
    }

    pub fn layer(&self) -> EnvFilter {
        EnvFilter::builder().parse_lossy(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// For a program that runs for long: a thread writes the lines, and the program does not wait for it.
    Service,
    /// For a command: each line is written at once, so that it comes before what the command prints next.
    Command,
}

/// Keeps the log's thread alive. Drop it last, so that the last lines are written.
#[derive(Debug)]
#[must_use = "the log's last lines are written when this is dropped"]
pub struct Log {
    _thread: Option<WorkerGuard>,
}

/// Starts the log of this process, and logs and counts its panics from now on. A second call changes nothing.
pub fn start(filter: &Filter, format: Format, writer: Writer) -> Log {
    let terminal = io::stderr().is_terminal();
    match writer {
        Writer::Service => {
            let (writer, guard) = non_blocking(io::stderr(), format);
            let _ = DROPPED.set(writer.error_counter());
            install(filter, format, writer, terminal);
            Log { _thread: Some(guard) }
        }
        Writer::Command => {
            start_to(io::stderr(), filter, format, terminal);
            Log { _thread: None }
        }
    }
}

fn non_blocking(inner: impl Write + Send + 'static, format: Format) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUE)
        .finish(LossyWriter::new(inner, format))
}

/// As [`start`], to another place: a file, or a stderr that is shared with a live line.
pub fn start_to(place: impl Write + Send + 'static, filter: &Filter, format: Format, terminal: bool) {
    install(filter, format, Mutex::new(LossyWriter::new(place, format)), terminal);
}

fn install<W>(filter: &Filter, format: Format, writer: W, terminal: bool)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let ansi = format == Format::Text && terminal;
    // Without `log_internal_errors(false)` a failed write is printed by `eprintln!`, which panics.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter.layer())
        .with_writer(writer)
        .with_ansi(ansi)
        .log_internal_errors(false);
    // Fails when this process has a log already, as a process with several tests does.
    let _ = match format {
        Format::Text => tracing::subscriber::set_global_default(log.finish()),
        Format::Json => tracing::subscriber::set_global_default(log.json().flatten_event(true).finish()),
    };
    crate::panics::install_hook();
}

/// A writer of stderr for `tracing` that never fails; what it cannot write is counted.
pub fn stderr() -> LossyWriter<io::Stderr> {
    LossyWriter::new(io::stderr(), Format::Json)
}

/// How many lines of its log this process has lost.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed) + DROPPED.get().map_or(0, |d| d.dropped_lines() as u64)
}

/// Writes one line to stderr. One that cannot be written is counted as lost, so no error is returned.
pub fn say(line: impl std::fmt::Display) {
    // `eprintln!` would panic.
    if writeln!(io::stderr(), "{line}").is_err() {
        count_lost(1);
    }
}

fn count_lost(lines: u64) {
    LOST.fetch_add(lines, Ordering::Relaxed);
}

/// Writes to `inner` and never fails: a line that cannot be written is counted.
#[derive(Debug)]
pub struct LossyWriter<W> {
    inner: W,
    format: Format,
    /// The value of [`lost`] that was last reported.
    reported: u64,
    /// Whether the last line may have been written in part.
    is_torn: bool,
}

impl<W> LossyWriter<W> {
    /// `format` is that of the lines that report lost lines.
    pub fn new(inner: W, format: Format) -> Self {
        Self { inner, format, reported: lost(), is_torn: false }
    }
}

/// The line that stands in the place of missing lines.
fn missing(lines: u64, format: Format) -> String {
    let mut at = String::new();
    // A time that cannot be formatted is left out.
    let _ = SystemTime.format_time(&mut FormatWriter::new(&mut at));
    match format {
        Format::Text => format!("{at}  WARN log lines are missing here lines={lines}\n"),
        Format::Json => {
            format!(
                "{{\"timestamp\":\"{at}\",\"level\":\"WARN\",\"message\":\"log lines are missing here\",\"lines\":{lines}}}\n"
            )
        }
    }
}

impl<W: Write> Write for LossyWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let lost_by_now = lost();
        if lost_by_now > self.reported {
            let end_of_line = if self.is_torn { "\n" } else { "" };
            let text = missing(lost_by_now - self.reported, self.format);
            if self.inner.write_all(format!("{end_of_line}{text}").as_bytes()).is_ok() {
                (self.reported, self.is_torn) = (lost_by_now, false);
            }
        }
        if self.inner.write_all(line).is_err() {
            self.is_torn = true;
            count_lost(1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // A failure does not matter: a line is counted when it cannot be written, or is lost with the process.
        let _ = self.inner.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Writing fails while it is full.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(bool, Vec<u8>)>>);

    impl Disk {
        fn set_full(&self, full: bool) {
            self.0.lock().unwrap().0 = full;
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().1.clone()).unwrap()
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            if disk.0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_reported_as_missing_later() {
        let disk = Disk::default();
        let mut writer = LossyWriter::new(disk.clone(), Format::Json);
        let before = lost();
        writer.write_all(b"one\n").unwrap();
        disk.set_full(true);
        writer.write_all(b"two\n").unwrap();
        writer.write_all(b"three\n").unwrap();
        disk.set_full(false);
        writer.write_all(b"four\n").unwrap();
        writer.flush().unwrap();
        let text = disk.text();
        // A line that may be incomplete is ended first.
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!((lines[0], lines[2], lines.len()), ("one", "four", 3));
        assert!(lines[1].contains("missing") && lines[1].contains(":2}"), "{}", lines[1]);
        assert!(lost() >= before + 2);
    }

    #[test]
    fn filters_and_formats_are_checked() {
        assert!("info".parse::<Filter>().is_ok() && "warn,shoes_vz_agent=debug".parse::<Filter>().is_ok());
        assert_eq!(" warn , shoes_vz_agent=debug".parse(), Ok(Filter("warn,shoes_vz_agent=debug".into())));
        for wrong in ["warning", "inof", ",,,", " "] {
            assert!(wrong.parse::<Filter>().unwrap_err().contains("not a valid log filter"), "{wrong:?}");
        }
        assert!("a=b=c".parse::<Filter>().unwrap_err().contains("not a valid log filter"));
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!("xml".parse::<Format>().unwrap_err().contains("neither"));
    }
}
