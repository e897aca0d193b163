//! Commands that are not run: bash reads them with a stand-in for every program. The stand-ins of shoes-vz programs call the
//! real program with the arguments and one unknown flag, so that it runs nothing and reports unknown arguments: exactly that
//! flag. The stand-in of make checks the target (`make -n`).

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use shoes_vz_testkit::bins::{Bins, repository};

use crate::{
    page::{Page, Typed},
    programs::PROGRAMS,
};

pub(crate) struct Checked {
    /// Number of accepted commands.
    pub(crate) right: usize,
    /// A line for each other command.
    pub(crate) wrong: Vec<String>,
}

/// Parses every command of these pages.
pub(crate) fn check(pages: &[Page]) -> Checked {
    let dir = tempfile::tempdir().expect("a temporary directory");
    stand_ins(dir.path());
    let mut checked = Checked { right: 0, wrong: Vec::new() };
    for page in pages {
        // One shell for each page: later commands use variables of earlier ones.
        let mut typed = page.inline_commands();
        typed.extend(page.blocks.iter().filter(|b| b.is_shell()).flat_map(crate::Block::commands));
        for (typed, record) in typed.iter().zip(read(dir.path(), &typed)) {
            let line = format!("{}, line {}", page.name, typed.line);
            if record.is_empty() && names_ours(&typed.text) {
                checked.wrong.push(format!("{line}: bash did not get to a command in {:?}", typed.text));
            }
            checked.right += record.iter().filter(|r| r.starts_with("right")).count();
            checked.wrong.extend(
                record.iter().filter_map(|r| r.strip_prefix("wrong ")).map(|w| format!("{line}: {w}")),
            );
        }
    }
    checked
}

fn names_ours(text: &str) -> bool {
    text.lines().any(|l| {
        let first = l.trim_start().split(' ').find(|w| !w.contains('=')).unwrap_or_default();
        first == "make" || PROGRAMS.contains(&first.rsplit('/').next().unwrap_or_default())
    })
}

/// The records of the stand-ins for each command.
fn read(dir: &Path, typed: &[Typed]) -> Vec<Vec<String>> {
    let record = dir.join("record");
    let mut script = String::from("command_not_found_handle() { return 0; }\n");
    for (at, command) in typed.iter().enumerate() {
        script.push_str(&format!("echo 'at {at}' >> \"$RECORD\"\n{}\n", command.foreground()));
    }
    fs::write(&record, "").expect("the record is written");
    Command::new("/bin/bash")
        .args(["-c", &script])
        .current_dir(dir.join("checkout"))
        .env_clear()
        .env("PATH", dir.join("bin"))
        .env("HOME", dir.join("home"))
        .env("RECORD", &record)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("bash runs");
    let mut found: Vec<Vec<String>> = Vec::new();
    for line in fs::read_to_string(&record).expect("a record").lines() {
        if line.starts_with("at ") {
            found.push(Vec::new());
        } else if let Some(last) = found.last_mut() {
            last.push(line.to_owned());
        }
    }
    assert_eq!(found.len(), typed.len(), "bash ended before the last command");
    found
}

/// Programs in PATH, and at the paths that pages use.
fn stand_ins(dir: &Path) {
    let bins = Bins::find();
    for folder in [
        "bin",
        "home",
        "checkout/bin",
        "checkout/guests/demo",
        "checkout/target/bundle/ShoesVZAgent.app/Contents/MacOS",
    ] {
        fs::create_dir_all(dir.join(folder)).expect("a directory");
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let judge = |check: String| {
        format!(
            "#!/bin/bash\nname=${{0##*/}} PATH='{path}'\nif output=$({check} 2>&1); then echo \"right $name $*\"; \
             else echo \"wrong $name $*: ${{output//$'\\n'/ / }}\"; fi >> \"$RECORD\"\n"
        )
    };
    let place = |to: &str, text: &str| {
        let to = dir.join(to);
        fs::write(&to, text).expect("a stand-in is written");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("it is made executable");
    };
    for program in PROGRAMS {
        let text = judge(accepts(&bins.path(program)));
        place(&format!("bin/{program}"), &text);
        place(&format!("checkout/bin/{program}"), &text);
        if program == "shoes-vz-agent" {
            place(&format!("checkout/target/bundle/ShoesVZAgent.app/Contents/MacOS/{program}"), &text);
        }
    }
    place("bin/make", &judge(make()));
    let script = repository().join("guests/demo/make-setup-script");
    place("checkout/guests/demo/make-setup-script", &judge(format!("'{}' \"$@\"", script.display())));
    place("bin/sudo", "#!/bin/bash\n\"$@\"\n");
}

/// A bash script that succeeds when a program of shoes-vz accepts the arguments.
fn accepts(program: &Path) -> String {
    format!(
        r#"
# The arguments after those of `exec` belong to the guest.
if [[ ${{1:-}} == exec ]]; then set -- exec; fi
if [[ " $* " == *" --help "* || " $* " == *" --version "* ]]; then '{program}' "$@"; exit; fi
output=$(timeout 60 '{program}' "$@" {UNKNOWN_FLAG} 2>&1)
unknown=$(grep -E 'unexpected argument|unrecognized subcommand' <<< "$output" | grep -v -e {UNKNOWN_FLAG})
if [[ -n $unknown || $output != *{UNKNOWN_FLAG}* ]]; then echo "${{unknown:-$output}}"; exit 1; fi
"#,
        program = program.display()
    )
}

/// A flag that no program has.
const UNKNOWN_FLAG: &str = "--no-program-has-this";

/// A bash script that succeeds when the Makefile defines each target; the name of a directory does not count.
pub(crate) fn make() -> String {
    let root = repository().display();
    format!(
        "for target; do case $target in -*|*=*) ;; *) grep -qsE \"^$target:\" '{root}'/Makefile '{root}'/packaging/*/*.mk || \
         {{ echo \"there is no target $target\"; exit 2; }} ;; esac; done; make --no-print-directory -n -C '{root}' \"$@\""
    )
}
