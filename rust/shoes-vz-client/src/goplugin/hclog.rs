//! Log lines as hashicorp/go-hclog's JSON, which a go-plugin host reads from its plugin's stderr (go-plugin's
//! client.go, `logStderr`, and log_entry.go, `parseJSON`): `@level`, `@message`, `@timestamp`, `@module`, fields as keys.
//!
//! The host's logger gets each line once, at its level; a line that is not such JSON is logged as DEBUG. The host also
//! copies stderr unchanged to `ClientConfig.Stderr`: a host that sets it to its own stderr, as myshoes does, shows each
//! line twice. A plugin cannot change that, but at `warn` there is little to copy.

use std::fmt;

use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter,
        format::{JsonFields, Writer},
        time::{FormatTime as _, SystemTime},
    },
    registry::LookupSpan,
};

/// The filter when `SHOESVZ_LOG` is not set: the log of a host is for what its operator has to know.
pub const DEFAULT_FILTER: &str = "warn";

/// The host reads a line into 64 KiB and splits a longer line into DEBUG lines.
const LONGEST_LINE: usize = 60 << 10;
/// Characters of one text, when the line is too long.
const LONGEST_TEXT: usize = 2 << 10;

/// Formats events for a go-plugin host. Fields of spans must be formatted by [`JsonFields`].
#[derive(Debug, Clone, Copy)]
struct Hclog {
    module: &'static str,
}

/// A complete log for a go-plugin host. A line that `writer` fails to write is lost without further effect.
pub fn subscriber<W>(module: &'static str, filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false)
        // Else a failed write is reported by `eprintln!`, which panics when that fails too.
        .log_internal_errors(false)
        .fmt_fields(JsonFields::new())
        .event_format(Hclog { module })
        .finish()
}

impl<S, N> FormatEvent<S, N> for Hclog
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line::default();
        for span in ctx.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                && let Ok(Value::Object(fields)) = serde_json::from_str(&fields.fields)
            {
                line.fields.extend(fields);
            }
        }
        event.record(&mut line);
        let mut at = String::new();
        // Six digits of a second and `Z`, as the host's layout requires.
        SystemTime.format_time(&mut Writer::new(&mut at))?;
        writeln!(writer, "{}", line.finish(self.module, event.metadata().level(), at))
    }
}

#[derive(Debug, Default)]
struct Line {
    message: String,
    fields: Map<String, Value>,
}

impl Line {
    fn finish(mut self, module: &str, level: &Level, at: String) -> String {
        // Keys of hclog; the host panics when their values are not strings.
        self.fields.retain(|key, _| !key.starts_with('@'));
        let mut object = self.fields;
        let mut put = |key: &str, value: String| object.insert(key.to_owned(), Value::String(value));
        put("@level", level.as_str().to_ascii_lowercase());
        put("@message", shoes_vz_terminal::text::line(&self.message));
        put("@timestamp", at);
        put("@module", module.to_owned());
        let whole = Value::Object(object);
        let line = shoes_vz_terminal::text::json(&whole.to_string());
        if line.len() <= LONGEST_LINE { line } else { shortened(whole) }
    }

    fn put(&mut self, field: &Field, value: Value) {
        self.fields.insert(field.name().to_owned(), value);
    }
}

/// With its texts cut or, when the line has too many fields, without fields.
fn shortened(mut line: Value) -> String {
    for value in line.as_object_mut().into_iter().flat_map(Map::values_mut) {
        if let Value::String(text) = value
            && text.chars().nth(LONGEST_TEXT).is_some()
        {
            *text = text.chars().take(LONGEST_TEXT).chain("…".chars()).collect();
        }
    }
    let cut = shoes_vz_terminal::text::json(&line.to_string());
    if cut.len() <= LONGEST_LINE {
        return cut;
    }
    if let Some(object) = line.as_object_mut() {
        object.retain(|key, _| key.starts_with('@'));
    }
    shoes_vz_terminal::text::json(&line.to_string())
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.put(field, value.into());
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Buffer {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// What is written while `log` runs, line by line.
    fn logged(filter: &str, log: impl FnOnce()) -> Vec<Value> {
        let buffer = Buffer::default();
        tracing::subscriber::with_default(subscriber("mine", EnvFilter::new(filter), buffer.clone()), log);
        let bytes = buffer.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.lines().all(|line| line.len() < 64 << 10));
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    #[test]
    fn a_line_has_the_keys_of_hclog_its_fields_and_those_of_its_spans() {
        let lines = logged("info", || {
            let _span = tracing::info_span!("call", request_id = "r-1", n = 1).entered();
            tracing::warn!(server = %"a:1", n = 2, ok = true, "no connection\nto \x1b[31mthe server");
            tracing::debug!("left out");
        });
        assert_eq!(lines.len(), 1);
        let line = &lines[0];
        assert_eq!((&line["@level"], &line["@module"]), (&"warn".into(), &"mine".into()));
        assert_eq!(line["@message"], "no connection to the server");
        assert_eq!((&line["server"], &line["n"], &line["ok"]), (&"a:1".into(), &2.into(), &true.into()));
        assert_eq!(line["request_id"], "r-1");
        let at = line["@timestamp"].as_str().unwrap();
        assert!(at.len() == "2006-01-02T15:04:05.000000Z".len() && at.ends_with('Z'), "{at}");
    }

    #[test]
    fn every_level_is_one_that_hclog_knows() {
        let lines = logged("trace", || {
            tracing::error!("1");
            tracing::warn!("2");
            tracing::info!("3");
            tracing::debug!("4");
            tracing::trace!("5");
        });
        let levels: Vec<_> = lines.iter().map(|l| l["@level"].as_str().unwrap()).collect();
        assert_eq!(levels, ["error", "warn", "info", "debug", "trace"]);
    }

    #[test]
    fn a_line_too_long_for_the_host_is_cut_and_stays_json() {
        let long = "\u{9b}x".repeat(40 << 10);
        let lines =
            logged("warn", || tracing::warn!(reason = long, short = "kept", "{}", "y".repeat(70 << 10)));
        assert!(lines[0]["reason"].as_str().unwrap().ends_with('…'), "{}", lines[0]);
        assert_eq!(lines[0]["short"], "kept");
        assert!(lines[0]["@message"].as_str().unwrap().starts_with("yyy"));
    }

    #[test]
    fn a_writer_that_fails_changes_nothing() {
        struct Full;
        impl io::Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let log = subscriber("mine", EnvFilter::new("warn"), || Full);
        tracing::subscriber::with_default(log, || tracing::warn!("lost"));
    }
}
