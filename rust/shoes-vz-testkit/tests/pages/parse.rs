//! Commands that are not run: read by bash, with stand-ins in place of every program. Ours give the real one these
//! arguments and one more that no program has, so that it runs nothing and names what it does not know: that one, and no
//! other. make's asks for the target (`make -n`).

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

/// What came of it.
pub(crate) struct Checked {
    /// Commands that are taken.
    pub(crate) right: usize,
    /// A line for each that is not.
    pub(crate) wrong: Vec<String>,
}

/// Parses every command of these pages.
pub(crate) fn check(pages: &[Page]) -> Checked {
    let dir = tempfile::tempdir().expect("a temporary directory");
    stand_ins(dir.path());
    let mut checked = Checked { right: 0, wrong: Vec::new() };
    for page in pages {
        // One shell for each: variables set further up are used further down.
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

/// What the stand-ins recorded for each command.
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
    for line in fs::read_to_string(&record).expect("the record is there").lines() {
        if line.starts_with("at ") {
            found.push(Vec::new());
        } else if let Some(last) = found.last_mut() {
            last.push(line.to_owned());
        }
    }
    assert_eq!(found.len(), typed.len(), "bash ended before the last command");
    found
}

/// Programs by name alone, and by the paths that pages give them.
fn stand_ins(dir: &Path) {
    let bins = Bins::find();
    for folder in [
        "bin",
        "home",
        "checkout/bin",
        "checkout/packaging/demo",
        "checkout/target/bundle/ShoesVZAgent.app/Contents/MacOS",
    ] {
        fs::create_dir_all(dir.join(folder)).expect("a directory");
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let judge = |ask: String| {
        format!(
            "#!/bin/bash\nname=${{0##*/}} PATH='{path}'\nif said=$({ask} 2>&1); then echo \"right $name $*\"; \
             else echo \"wrong $name $*: ${{said//$'\\n'/ / }}\"; fi >> \"$RECORD\"\n"
        )
    };
    let place = |to: &str, text: &str| {
        let to = dir.join(to);
        fs::write(&to, text).expect("a stand-in is written");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("it is made executable");
    };
    for program in PROGRAMS {
        let text = judge(ask(&bins.path(program)));
        place(&format!("bin/{program}"), &text);
        place(&format!("checkout/bin/{program}"), &text);
        if program == "shoes-vz-agent" {
            place(&format!("checkout/target/bundle/ShoesVZAgent.app/Contents/MacOS/{program}"), &text);
        }
    }
    place("bin/make", &judge(make()));
    let script = repository().join("packaging/demo/make-setup-script");
    place("checkout/packaging/demo/make-setup-script", &judge(format!("'{}' \"$@\"", script.display())));
    place("bin/sudo", "#!/bin/bash\n\"$@\"\n");
}

/// Bash that succeeds when a program of ours takes the arguments.
fn ask(program: &Path) -> String {
    format!(
        r#"
# What follows `exec`'s own arguments is the guest's.
if [[ ${{1:-}} == exec ]]; then set -- exec; fi
if [[ " $* " == *" --help "* || " $* " == *" --version "* ]]; then '{program}' "$@"; exit; fi
said=$(timeout 60 '{program}' "$@" {NOBODYS} 2>&1)
unknown=$(grep -E 'unexpected argument|unrecognized subcommand' <<< "$said" | grep -v -e {NOBODYS})
if [[ -n $unknown || $said != *{NOBODYS}* ]]; then echo "${{unknown:-$said}}"; exit 1; fi
"#,
        program = program.display()
    )
}

/// A flag that no program has.
const NOBODYS: &str = "--no-program-has-this";

/// Bash that succeeds when make has each target it is given, as an entry of its own: a folder's name would be one, too.
pub(crate) fn make() -> String {
    let root = repository().display();
    format!(
        "for target; do case $target in -*|*=*) ;; *) grep -qsE \"^$target:\" '{root}'/Makefile '{root}'/packaging/*/*.mk || \
         {{ echo \"there is no target $target\"; exit 2; }} ;; esac; done; make --no-print-directory -n -C '{root}' \"$@\""
    )
}
