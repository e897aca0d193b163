//! One table of settings for all programs: all four give the same answer to a value from each source.
//!
//! Every run also sets an unknown variable, so that the program ends with exit code 2 and a list of mistakes, whether or not
//! the value under test is valid.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::Path,
    process::{Command, Output, Stdio},
};

use shoes_vz_testkit::bins::Bins;

/// A program, its subcommand, the prefix of its variables, and one of its settings that is a duration.
const PROGRAMS: [(&str, Option<&str>, &str, Option<&str>); 4] = [
    ("shoes-vz-server", None, "SHOESVZ_SERVER_", Some("caller-grace")),
    ("shoes-vz-agent", Some("run"), "SHOESVZ_AGENT_", Some("start-deadline")),
    ("shoes-vz-client", Some("list"), "SHOESVZ_CLIENT_", None),
    ("shoes-vz-runner-agent", None, "SHOESVZ_RUNNER_AGENT_", None),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    TwoDashes,
    OneDash,
    Equals,
    Environment,
    FileWithDash,
    FileWithUnderscore,
}

const SOURCES: [Source; 6] = [
    Source::TwoDashes,
    Source::OneDash,
    Source::Equals,
    Source::Environment,
    Source::FileWithDash,
    Source::FileWithUnderscore,
];

const DURATION: &str = "DURATION";

/// The mistakes that a program lists; it must list at least one.
fn mistakes(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    let (head, rest) = text.split_once('\n').expect("a list of mistakes");
    assert!(head.contains(" wrong:"), "{text}");
    rest.split("\n  - ").map(|m| m.trim_start_matches("  - ").trim_end().to_owned()).collect()
}

/// The mistake that `program` reports for `value` of `setting` from `source`, without its origin; `None` when it accepts
/// the value.
fn answer(program: usize, setting: &str, value: &OsStr, source: Source, dir: &Path) -> Option<String> {
    let (name, subcommand, prefix, _) = PROGRAMS[program];
    let mut command = Command::new(Bins::find().path(name));
    command.args(subcommand);
    let variable = format!("{prefix}{}", setting.replace('-', "_").to_uppercase());
    let origin = match source {
        Source::TwoDashes | Source::OneDash => {
            let dashes = if source == Source::OneDash { "-" } else { "--" };
            command.arg(format!("{dashes}{setting}")).arg(value);
            format!("--{setting}: ")
        }
        Source::Equals => {
            let arg = [b"--", setting.as_bytes(), b"=", value.as_bytes()].concat();
            command.arg(OsString::from_vec(arg));
            format!("--{setting}: ")
        }
        Source::Environment => format!("{variable}: "),
        Source::FileWithDash | Source::FileWithUnderscore => {
            let key =
                if source == Source::FileWithDash { setting.to_owned() } else { setting.replace('-', "_") };
            let path = dir.join("settings.toml");
            std::fs::write(&path, format!("{key} = {:?}\n", value.to_str().expect("a file is UTF-8")))
                .expect("the file is written");
            command.arg("--config").arg(&path);
            format!("{}: {setting}: ", path.display())
        }
    };
    command.env_clear().env("HOME", "/nonexistent").env(format!("{prefix}SENTINEL"), "1");
    if source == Source::Environment {
        command.env(&variable, value);
    }
    let output = command.stdin(Stdio::null()).output().expect("the program runs");
    let all = mistakes(&output);
    assert!(all.iter().any(|m| m.contains("SENTINEL is not a setting")), "{name}: {all:?}");
    let mut about: Vec<&String> = all.iter().filter(|m| m.starts_with(&origin)).collect();
    assert!(about.len() <= 1, "{name} {source:?} {value:?}: {all:?}");
    about.pop().map(|m| m[origin.len()..].to_owned())
}

/// Asserts that every program with `setting` gives the same answer to `value` from every source; returns that answer.
fn same_answer(setting: &str, value: &OsStr, dir: &Path) -> Option<String> {
    let mut answers = Vec::new();
    for (program, (name, _, _, duration)) in PROGRAMS.into_iter().enumerate() {
        let setting = match (setting, duration) {
            (DURATION, None) => continue,
            (DURATION, Some(setting)) => setting,
            (setting, _) => setting,
        };
        for source in SOURCES {
            let in_a_file = matches!(source, Source::FileWithDash | Source::FileWithUnderscore);
            if in_a_file && value.to_str().is_none() {
                continue;
            }
            answers.push((name, source, answer(program, setting, value, source, dir)));
        }
    }
    let first = answers[0].2.clone();
    for (name, source, answer) in &answers {
        assert_eq!(answer, &first, "{setting} = {value:?}: {name} from {source:?} differs");
    }
    first
}

#[test]
fn every_program_gives_the_same_answer_to_the_same_value_from_every_source() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &OsStr, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.into_os_string()
    };
    let good = file("good".as_ref(), b"s3cret\n");
    let odd = file(OsStr::from_bytes(b"st\xe9"), b"s3cret\n");
    let empty = file("empty".as_ref(), b"");
    let two = file("two".as_ref(), b"s3cret\ns3cret\n");
    let accepted: &[(&str, &OsStr)] = &[
        ("token-file", &good),
        ("token-file", &odd),
        ("log", "warn".as_ref()),
        ("log", "warn,shoes_vz_agent=debug".as_ref()),
        ("log-format", "text".as_ref()),
        ("log-format", "json".as_ref()),
        (DURATION, "90s".as_ref()),
        (DURATION, "1h30m".as_ref()),
        (DURATION, "7d".as_ref()),
        (DURATION, "500ms".as_ref()),
        // An empty value counts as unset.
        ("token-file", "".as_ref()),
        ("log-format", "".as_ref()),
        (DURATION, "".as_ref()),
    ];
    for (setting, value) in accepted {
        assert_eq!(same_answer(setting, value, dir.path()), None, "{setting} = {value:?}");
    }
    let not_utf8 = OsStr::from_bytes(b"inf\xe9");
    let refused: &[(&str, &OsStr, &str)] = &[
        ("token-file", &empty, "is empty"),
        ("token-file", &two, "one line"),
        ("token-file", "/dev/zero".as_ref(), "larger than 64.0 KiB"),
        ("token-file", "/nonexistent/token".as_ref(), "No such file"),
        ("token-file", dir.path().as_os_str(), "a directory, not a file"),
        ("log", "a=b=c".as_ref(), "is not a valid log filter"),
        ("log", not_utf8, "is not valid UTF-8"),
        ("log-format", "xml".as_ref(), "neither \"text\" nor \"json\""),
        (DURATION, "90".as_ref(), "it has no unit"),
        (DURATION, "soon".as_ref(), "is not a valid duration"),
        (DURATION, "-1s".as_ref(), "is not a valid duration"),
        (DURATION, "200y".as_ref(), "longer than 100 years"),
    ];
    for (setting, value, text) in refused {
        let answer = same_answer(setting, value, dir.path());
        let answer = answer.unwrap_or_else(|| panic!("{setting} = {value:?} is accepted"));
        assert!(answer.contains(text) && !answer.contains("s3cret"), "{setting} = {value:?}: {answer}");
    }
}

#[test]
fn every_program_refuses_unknown_names_in_every_source_and_a_file_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let unknown = dir.path().join("unknown.toml");
    std::fs::write(&unknown, "colour = 1\ntoken-file = \"a\"\ntoken_file = \"b\"\n").unwrap();
    let nonsense = dir.path().join("nonsense.toml");
    std::fs::write(&nonsense, "colour = [").unwrap();
    for (name, subcommand, prefix, _) in PROGRAMS {
        let list = |args: &[&OsStr], vars: &[(String, &str)]| {
            let mut command = Command::new(Bins::find().path(name));
            command.args(subcommand).args(args).env_clear().env("HOME", "/nonexistent");
            command.envs(vars.iter().map(|(n, v)| (n, v))).stdin(Stdio::null());
            mistakes(&command.output().expect("the program runs")).join("\n")
        };
        let all = list(
            &[
                "--colour".as_ref(),
                "red".as_ref(),
                "-token-fil=x".as_ref(),
                "--config".as_ref(),
                unknown.as_ref(),
            ],
            &[(format!("{prefix}COLOUR"), "red")],
        );
        for text in
            ["'--colour'", "'--token-fil'", "COLOUR is not a setting", "\"colour\" is not a setting", "twice"]
        {
            assert!(all.contains(text), "{name}: {text} is not in:\n{all}");
        }
        for (path, text) in [
            (nonsense.as_os_str(), "is not valid TOML"),
            ("/dev/zero".as_ref(), "larger than 1.0 MiB"),
            ("/nonexistent/c".as_ref(), "No such file"),
            (dir.path().as_os_str(), "a directory, not a file"),
        ] {
            let all = list(&["--config".as_ref(), path], &[]);
            assert!(
                all.contains(text) && all.contains(path.to_str().unwrap()),
                "{name}: {text} is not in:\n{all}"
            );
        }
    }
}
