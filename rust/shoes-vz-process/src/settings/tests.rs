use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, path::PathBuf, time::Duration};

use clap::Parser as _;

use super::*;

static PROGRAM: Program = Program {
    name: "shoes-vz-test",
    env_prefix: "SHOESVZ_TEST_",
    foreign_env: &["SHOESVZ_TEST_ADDR"],
    settings: &[
        Setting::new("listen-addr", "ADDR", "Where to listen").or(":1"),
        Setting::new("state-dir", "DIR", "Where to keep state").or_else("a place"),
        Setting::new("grace", "TIME", "How long to wait").or("30s"),
        Setting::new("room", "SIZE", "How much").or("1GiB"),
        Setting::new("labels", "LABEL,…", "Which labels"),
        Setting::new("token-file", "FILE", "A token").also_env("SHOESVZ_TOKEN_FILE"),
        Setting::switch("insecure", "Accept every caller"),
        CONFIG,
        LOG,
        LOG_FORMAT,
    ],
    tables: &["sizes"],
};

struct All;

impl Table for All {
    const PROGRAM: &'static Program = &PROGRAM;
}

#[derive(Debug, clap::Parser)]
#[command(name = "shoes-vz-test", version)]
struct Cli {
    #[command(flatten)]
    flags: Flags<All>,
    #[command(subcommand)]
    sub: Option<Sub>,
}

#[derive(Debug, clap::Subcommand)]
enum Sub {
    Exec {
        #[arg(long)]
        reason: Option<String>,
        id: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn os(args: &[&str]) -> Vec<OsString> {
    std::iter::once("shoes-vz-test").chain(args.iter().copied()).map(OsString::from).collect()
}

fn values(args: &[&str], vars: &[(&str, &str)]) -> Values {
    use clap::{CommandFactory as _, FromArgMatches as _};
    let (matches, mistakes) = command_line::parse(Cli::command(), os(args)).unwrap();
    let cli = Cli::from_arg_matches(&matches).unwrap();
    let vars = vars.iter().map(|(n, v)| (OsString::from(n), OsString::from(v)));
    Values::gather(&cli.flags, vars, mistakes)
}

fn wrong(values: Values) -> Vec<String> {
    values.finish::<()>(None).unwrap_err().0
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn a_flag_overrides_the_environment_which_overrides_the_file_which_overrides_the_default() {
    let (_dir, path) =
        file("listen_addr = ':4'\ngrace = '4s'\nroom = 4\ninsecure = true\nlabels = ['a', 'b']\n");
    let path = path.to_str().unwrap();
    let vars =
        [("SHOESVZ_TEST_LISTEN_ADDR", ":3"), ("SHOESVZ_TEST_GRACE", "3s"), ("SHOESVZ_TEST_CONFIG", path)];
    let mut v = values(&["-listen-addr", ":2"], &vars);
    assert_eq!(v.text("listen-addr").as_deref(), Some(":2"));
    assert_eq!(v.duration("grace", Zero::Refused), Some(Duration::from_secs(3)));
    assert_eq!(v.size("room"), Some(4));
    assert_eq!(v.switch("insecure"), Some(true));
    assert_eq!(v.text("labels").as_deref(), Some("a,b"));
    assert_eq!((v.path("state-dir"), v.log().1), (None, crate::log::Format::Text));
    assert_eq!(v.origin("listen-addr"), "--listen-addr");
    assert_eq!(v.origin("grace"), "SHOESVZ_TEST_GRACE");
    assert_eq!(v.origin("room"), format!("{path}: room"));
    assert_eq!(v.finish(Some(())), Ok(()));
}

#[test]
fn an_empty_value_counts_as_none() {
    let mut v =
        values(&["--listen-addr", ""], &[("SHOESVZ_TEST_LISTEN_ADDR", ""), ("SHOESVZ_TEST_STATE_DIR", "")]);
    assert_eq!(v.text("listen-addr").as_deref(), Some(":1"));
    assert_eq!(v.path("state-dir"), None);
}

#[test]
fn a_second_variable_counts_when_the_programs_variable_is_not_set() {
    let both = [("SHOESVZ_TOKEN_FILE", "/theirs"), ("SHOESVZ_TEST_TOKEN_FILE", "/ours")];
    assert_eq!(values(&[], &both).path("token-file"), Some("/ours".into()));
    assert_eq!(values(&[], &both[..1]).path("token-file"), Some("/theirs".into()));
}

#[test]
fn a_path_need_not_be_utf_8_and_a_text_that_is_not_is_a_mistake() {
    let odd = OsString::from_vec(b"/srv/st\xe9".to_vec());
    let vars = [
        (OsString::from("SHOESVZ_TEST_STATE_DIR"), odd.clone()),
        (OsString::from("SHOESVZ_TEST_LISTEN_ADDR"), odd.clone()),
    ];
    let mut v = Values::gather(&Flags::<All>::default(), vars, Mistakes::default());
    assert_eq!(v.path("state-dir"), Some(odd.into()));
    assert_eq!(v.text("listen-addr"), None);
    assert!(wrong(v)[0].starts_with("SHOESVZ_TEST_LISTEN_ADDR: "));
}

#[test]
fn unknown_names_are_refused_in_every_source_and_every_mistake_is_reported_at_once() {
    let (_dir, path) = file(
        "colour = 1\ngrace = 'soon'\nroom = 1.5\nconfig = 'x'\nlog-format = 'a'\nlog_format = 'b'\n[sizes]\n",
    );
    let vars = [("SHOESVZ_TEST_GRASE", "1s"), ("SHOESVZ_TEST_ADDR", "fine"), ("SHOESVZ_TEST_LOG", "a=b=c")];
    let args = [
        "-listen-adr",
        ":9",
        "--config",
        path.to_str().unwrap(),
        "-token-file",
        "/no/token",
        "--colour=red",
        "-insecure=perhaps",
    ];
    let mut v = values(&args, &vars);
    let _ = (
        v.duration("grace", Zero::Refused),
        v.size("room"),
        v.token("token-file"),
        v.switch("insecure"),
        v.log(),
    );
    assert!(v.table("sizes").is_some());
    let all = wrong(v);
    for part in [
        "'--listen-adr'",
        "'--colour'",
        "SHOESVZ_TEST_GRASE is not",
        "\"colour\" is not a setting",
        "test.toml: grace: \"soon\"",
        "room: it is a TOML float",
        "cannot name another",
        "twice",
        "/no/token",
        "--insecure: \"perhaps\"",
        "SHOESVZ_TEST_LOG: \"a=b=c\"",
    ] {
        assert_eq!(all.iter().filter(|m| m.contains(part)).count(), 1, "{part:?}: {all:#?}");
    }
    // The twelfth is the value of the file's first log-format.
    assert_eq!(all.len(), 12, "{all:#?}");
    assert!(all[0].contains("similar") && all[0].contains("--listen-addr"), "{}", all[0]);
    assert!(Mistakes(all).to_string().starts_with("12 settings are wrong:\n  - "));
}

#[test]
fn a_file_that_is_too_long_or_missing_or_not_toml_is_a_mistake_that_names_it() {
    let (_dir, path) = file("x = [");
    for (path, text) in
        [(path.to_str().unwrap(), "not valid TOML"), ("/dev/zero", "larger than"), ("/no/f", "cannot read")]
    {
        let all = wrong(values(&["--config", path], &[]));
        assert!(all.len() == 1 && all[0].contains(text) && all[0].contains(path), "{all:?}");
    }
}

#[test]
fn one_dash_works_as_well_as_two_and_values_and_programs_keep_theirs() {
    let two = |args: &[&str]| {
        use clap::CommandFactory as _;
        let mut command = Cli::command();
        command.build();
        let args = command_line::two_dashes(&command, os(args));
        args.into_iter().skip(1).map(|a| a.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        two(&["-listen-addr", ":2", "-insecure", "-grace=3s"]),
        "--listen-addr :2 --insecure --grace=3s"
    );
    assert_eq!(two(&["-listen-addr", "-grace"]), "--listen-addr -grace");
    assert_eq!(two(&["-help"]), "--help");
    assert_eq!(two(&["-h", "-V", "-1", "-", "---x"]), "-h -V -1 - ---x");
    assert_eq!(two(&["exec", "-reason", "x", "id", "ls", "-la"]), "exec --reason x id ls -la");
    assert_eq!(two(&["exec", "id", "--", "-la"]), "exec id -- -la");
}

#[test]
fn the_help_names_default_and_variable_and_an_unknown_flag_is_reported_even_with_help() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
    let help = Cli::command().render_long_help().to_string();
    assert!(help.contains("Where to listen [default: :1] [env: SHOESVZ_TEST_LISTEN_ADDR]"), "{help}");
    assert!(help.contains("Where to keep state [default: a place]"), "{help}");
    assert!(help.contains("[env: SHOESVZ_TEST_LOG, SHOESVZ_LOG]"), "{help}");
    let error = command_line::parse(Cli::command(), os(&["-colour", "red", "exec"])).unwrap_err().to_string();
    assert!(error.contains("--colour") && error.contains("required"), "{error}");
    let error = command_line::parse(Cli::command(), os(&["-colour", "red", "--help"])).unwrap_err();
    assert!(error.use_stderr() && error.to_string().contains("--colour"), "{error}");
    assert!(Cli::try_parse_from(os(&["--insecure"])).is_ok());
}
