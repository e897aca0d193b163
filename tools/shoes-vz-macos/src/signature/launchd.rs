//! The property lists for launchd in a bundle (`Contents/Resources/launchd`): launchd must accept them, and they must
//! start existing programs. launchd silently ignores unknown keys and values of a wrong type; these are refused here.

use std::{fs, path::Path};

use plist::{Dictionary, Value};

use super::{mistakes::Findings, plists};

const REMEDY: &str = "fix it in packaging/macos/launchd, then make bundle";

/// What a key holds (launchd.plist(5)).
#[derive(Debug, Clone, Copy)]
enum Holds {
    Text,
    Texts,
    TextOrTexts,
    Yes,
    YesOrConditions,
    Number,
    TextsByName,
    NumbersByName,
}

/// The keys that this project's jobs may have, a subset of launchd's.
const KEYS: [(&str, Holds); 26] = [
    ("AbandonProcessGroup", Holds::Yes),
    ("AssociatedBundleIdentifiers", Holds::TextOrTexts),
    ("EnvironmentVariables", Holds::TextsByName),
    ("ExitTimeOut", Holds::Number),
    ("GroupName", Holds::Text),
    ("HardResourceLimits", Holds::NumbersByName),
    ("InitGroups", Holds::Yes),
    ("KeepAlive", Holds::YesOrConditions),
    ("Label", Holds::Text),
    ("LimitLoadToSessionType", Holds::TextOrTexts),
    ("LowPriorityIO", Holds::Yes),
    ("Nice", Holds::Number),
    ("ProcessType", Holds::Text),
    ("Program", Holds::Text),
    ("ProgramArguments", Holds::Texts),
    ("RunAtLoad", Holds::Yes),
    ("SessionCreate", Holds::Yes),
    ("SoftResourceLimits", Holds::NumbersByName),
    ("StandardErrorPath", Holds::Text),
    ("StandardInPath", Holds::Text),
    ("StandardOutPath", Holds::Text),
    ("StartInterval", Holds::Number),
    ("ThrottleInterval", Holds::Number),
    ("Umask", Holds::Number),
    ("UserName", Holds::Text),
    ("WorkingDirectory", Holds::Text),
];

const PROCESS_TYPES: [&str; 4] = ["Adaptive", "Background", "Interactive", "Standard"];

/// Checks all and adds mistakes to `found`.
pub(super) fn check(bundle: &Path, found: &mut Findings) {
    let Ok(entries) = fs::read_dir(bundle.join("Contents/Resources/launchd")) else { return };
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    for file in files {
        let Some(bytes) = found.read(&file, "make it readable") else { continue };
        match plists::dictionary(&bytes) {
            Ok(job) => judge(bundle, &file, &job, found),
            Err(e) => found.add(&file, format!("is unusable: {e}"), REMEDY),
        }
    }
}

fn judge(bundle: &Path, file: &Path, job: &Dictionary, found: &mut Findings) {
    let mut wrong = |what: String| found.add(file, what, REMEDY);
    for (key, value) in job {
        match KEYS.iter().find(|(known, _)| known == key) {
            None => {
                wrong(format!("has the key {key}, which launchd would ignore or this project does not use"))
            }
            Some((_, holds)) if !fits(*holds, value) => {
                wrong(format!("has {} in {key}, which launchd would ignore", plists::kind(value)));
            }
            Some(_) => {}
        }
    }
    let text = |key: &str| job.get(key).and_then(Value::as_string);
    let label = text("Label").unwrap_or_default();
    if file.extension().is_none_or(|e| e != "plist") || file.file_stem().is_none_or(|stem| stem != label) {
        wrong(format!("has Label {label:?}, which is not its file name"));
    }
    if let Some(kind) = text("ProcessType").filter(|kind| !PROCESS_TYPES.contains(kind)) {
        wrong(format!("has ProcessType {kind:?}, which is not one of launchd's"));
    }
    for key in ["StandardErrorPath", "StandardInPath", "StandardOutPath", "WorkingDirectory"] {
        if let Some(path) = text(key).filter(|path| !path.starts_with('/')) {
            wrong(format!("has {key} {path:?}; launchd expands no ~ and has no current directory"));
        }
    }
    let arguments = job.get("ProgramArguments").and_then(Value::as_array);
    let program = arguments.and_then(|all| all.first()).and_then(Value::as_string);
    let Some(program) = program.map(Path::new).filter(|program| program.is_absolute()) else {
        return wrong("names no program by an absolute path (ProgramArguments)".into());
    };
    if let Some(name) = bundle.file_name()
        && let Ok(inside) = program.strip_prefix(Path::new("/Applications").join(name))
        && !bundle.join(inside).is_file()
    {
        wrong(format!("starts {}, which is not in the bundle", program.display()));
    }
}

fn fits(holds: Holds, value: &Value) -> bool {
    let text = |value: &Value| value.as_string().is_some();
    let number = |value: &Value| value.as_signed_integer().is_some();
    let texts = |value: &Value| value.as_array().is_some_and(|all| !all.is_empty() && all.iter().all(text));
    let all_of = |value: &Value, one: fn(&Value) -> bool| {
        value.as_dictionary().is_some_and(|all| all.values().all(one))
    };
    match holds {
        Holds::Text => text(value),
        Holds::Texts => texts(value),
        Holds::TextOrTexts => text(value) || texts(value),
        Holds::Yes => value.as_boolean().is_some(),
        Holds::YesOrConditions => value.as_boolean().is_some() || value.as_dictionary().is_some(),
        Holds::Number => number(value),
        Holds::TextsByName => all_of(value, |v| v.as_string().is_some()),
        Holds::NumbersByName => all_of(value, |v| v.as_signed_integer().is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with the job `com.example.job` of these keys.
    fn wrong(keys: &str) -> Vec<String> {
        let xml = format!("<plist version=\"1.0\"><dict>{keys}</dict></plist>");
        let mut found = Findings::default();
        let file = Path::new("/x/com.example.job.plist");
        judge(Path::new("/x/No.app"), file, &plists::dictionary(xml.as_bytes()).unwrap(), &mut found);
        found.0.into_iter().map(|mistake| mistake.what).collect()
    }

    const GOOD: &str = "<key>Label</key><string>com.example.job</string>
        <key>ProgramArguments</key><array><string>/bin/true</string><string>x</string></array>";

    #[test]
    fn what_launchd_would_ignore_is_refused() {
        assert_eq!(wrong(GOOD), Vec::<String>::new());
        for (more, expected) in [
            ("<key>AbandonProcesGroup</key><true/>", "the key AbandonProcesGroup"),
            ("<key>AbandonProcessGroup</key><integer>1</integer>", "an integer in AbandonProcessGroup"),
            ("<key>KeepAlive</key><string>yes</string>", "a string in KeepAlive"),
            ("<key>Umask</key><string>077</string>", "a string in Umask"),
            ("<key>EnvironmentVariables</key><dict><key>A</key><true/></dict>", "in EnvironmentVariables"),
            (
                "<key>HardResourceLimits</key><dict><key>NumberOfFiles</key><string>1</string></dict>",
                "in HardResourceLimits",
            ),
            ("<key>ProcessType</key><string>interactive</string>", "ProcessType \"interactive\""),
            ("<key>StandardOutPath</key><string>~/x.log</string>", "StandardOutPath \"~/x.log\""),
        ] {
            let wrong = wrong(&format!("{GOOD}{more}"));
            assert!(matches!(&wrong[..], [one] if one.contains(expected)), "{expected}: {wrong:?}");
        }
    }

    #[test]
    fn fault_27_the_agent_is_a_job_of_the_logged_in_user_and_comes_back_however_it_ended() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let launchd = repository.join("packaging/macos/launchd");
        let file = launchd.join("com.github.whywaita.shoes-vz-agent.plist");
        let job = plists::dictionary(&fs::read(&file).unwrap()).unwrap();
        let mut found = Findings::default();
        judge(Path::new("/x/No.app"), &file, &job, &mut found);
        assert!(found.0.is_empty(), "{:?}", found.0);
        for key in ["UserName", "GroupName", "SessionCreate"] {
            assert!(job.get(key).is_none(), "{key} makes it a separate daemon, or root's");
        }
        let of = |key: &str| job.get(key).and_then(Value::as_string);
        assert_eq!(of("LimitLoadToSessionType"), Some("Aqua"), "where the keychain is unlocked");
        assert_eq!(job.get("KeepAlive").and_then(Value::as_boolean), Some(true));
        let entitled = plists::dictionary(&fs::read(repository.join("entitlements.plist")).unwrap()).unwrap();
        let vz = entitled.get("com.apple.security.virtualization").and_then(Value::as_boolean);
        assert_eq!(vz, Some(true), "or Virtualization.framework refuses every VM");
    }

    #[test]
    fn a_job_without_name_or_program_is_refused() {
        let wrong = wrong("<key>ProgramArguments</key><array><string>true</string></array>");
        assert!(wrong[0].contains("Label \"\""), "{wrong:?}");
        assert!(wrong[1].contains("no program by an absolute path"), "{wrong:?}");
    }
}
