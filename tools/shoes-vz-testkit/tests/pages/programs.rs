//! The programs as their `--help` shows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use shoes_vz_testkit::{
    bins::{Bins, repository},
    daemon::Daemon,
};

/// The programs that users run.
pub(crate) const PROGRAMS: [&str; 4] =
    ["shoes-vz-server", "shoes-vz-agent", "shoes-vz-client", "shoes-vz-runner-agent"];

/// The help text of each program and subcommand.
pub(crate) fn help_texts() -> BTreeMap<String, String> {
    let bins = Bins::find();
    let mut texts = BTreeMap::new();
    let mut ahead: Vec<Vec<String>> = PROGRAMS.iter().map(|p| vec![(*p).to_owned()]).collect();
    while let Some(command) = ahead.pop() {
        let output = Command::new(bins.path(&command[0]))
            .args(&command[1..])
            .arg("--help")
            // Independent of the environment and the terminal width of the tests.
            .env_clear()
            .output()
            .expect("the program runs");
        let text = String::from_utf8(output.stdout).expect("help is UTF-8");
        assert!(output.status.success(), "{command:?} --help: {}", String::from_utf8_lossy(&output.stderr));
        for subcommand in subcommands(&text) {
            ahead.push([&command[..], &[subcommand]].concat());
        }
        texts.insert(command.join(" "), text);
    }
    texts
}

fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    // Continuation lines are indented further.
    let names = lines
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next());
    names.filter(|n| *n != "help").map(String::from).collect()
}

/// The flags and variables of all programs.
pub(crate) struct Help {
    flags: BTreeSet<String>,
    by_program: BTreeMap<&'static str, BTreeSet<String>>,
    texts: String,
}

/// Reads the help of all programs, including the script in `packaging/`.
pub(crate) fn all_help() -> Help {
    let mut help = Help { flags: BTreeSet::new(), by_program: BTreeMap::new(), texts: String::new() };
    for (command, text) in help_texts() {
        let program = PROGRAMS
            .into_iter()
            .find(|p| command.split(' ').next() == Some(p))
            .expect("a program of shoes-vz");
        let flags: BTreeSet<String> = flags_in(&text).collect();
        help.flags.extend(flags.iter().cloned());
        help.by_program.entry(program).or_default().extend(flags);
        help.texts.push_str(&text);
    }
    let script =
        std::fs::read_to_string(repository().join("guests/demo/make-setup-script")).expect("the script");
    help.flags.extend(flags_in(&script));
    help
}

fn flags_in(text: &str) -> impl Iterator<Item = String> + '_ {
    let tokens = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    tokens.filter(|w| w.starts_with("--") && w.len() > 2).map(String::from)
}

impl Help {
    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        self.flags.contains(flag)
    }

    /// `SHOESVZ_<PROGRAM>_<FLAG>`, one that a help text names, or one that make or the tests read.
    pub(crate) fn has_variable(&self, name: &str) -> bool {
        let prefixes = [
            ("SHOESVZ_SERVER_", "shoes-vz-server"),
            ("SHOESVZ_AGENT_", "shoes-vz-agent"),
            ("SHOESVZ_CLIENT_", "shoes-vz-client"),
            ("SHOESVZ_RUNNER_AGENT_", "shoes-vz-runner-agent"),
        ];
        let flag_of = |(prefix, program): (&str, &str)| {
            let flag = name.strip_prefix(prefix)?.to_lowercase().replace('_', "-");
            Some(self.by_program[program].contains(&format!("--{flag}")))
        };
        let others = ["SHOESVZ_LOG", "SHOESVZ_SERVER_ADDR", "SHOESVZ_TOKEN_FILE"];
        prefixes.into_iter().filter_map(flag_of).any(|known| known)
            || others.contains(&name)
            || name.starts_with("SHOESVZ_TEST_")
            || name.contains('<')
            || self.texts.contains(&format!("{name}="))
    }
}

/// Starts a server with this `--config`, and waits until it is ready.
pub(crate) async fn server_starts_with(bins: &Bins, config: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| -> PathBuf { dir.path().join(name) };
    std::fs::write(at("server.toml"), config).expect("the file is written");
    let mut command = tokio::process::Command::new(bins.path("shoes-vz-server"));
    command.args(["--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0"]);
    for (flag, name) in [("--state-dir", "state"), ("--ready-file", "ready"), ("--config", "server.toml")] {
        command.arg(flag).arg(at(name));
    }
    let mut server = Daemon::start("shoes-vz-server", &mut command, &at("log")).expect("the server starts");
    server.ready(Path::new(&at("ready")), Duration::from_secs(30)).await.map(drop)
}
