//! What people read is plain English: string literals and doc comments of Rust (tests aside), strings and comments of
//! Swift, help and output of make and the scripts, the pages, and the snapshots of `--help`.

use std::collections::BTreeSet;

use proc_macro2::{TokenStream, TokenTree};

use crate::files::{Module, Sources, modules};

/// Phrases (`|` between forms of one, `_` for any word) and what to write instead.
const BANNED: [(&str, &str); 14] = [
    ("told", "receives, is informed, says"),
    ("words", "message, reason, text"),
    ("anew", "again"),
    ("whoever", "anyone who, the caller that"),
    ("shall", "must, will"),
    ("mend|mends|mended", "fix, repair"),
    ("for ever", "forever, without a limit"),
    ("of its own|of their own", "its own, separate"),
    ("is no _", "is not a valid _, is not a _"),
    ("deed|deeds|doom|doomed", "action, terminate"),
    ("knock|knocks|knocked", "announce, announcement"),
    ("heard of", "received from, known"),
    ("nobody", "no client, no process, no one"),
    ("let have", "give, grant"),
];

/// What a line may say all the same, and why.
const ALLOWED: [(&str, &str); 3] = [
    ("alias = \"doom\"", "the key that earlier builds wrote into the database"),
    ("here is no ", "plain English for what does not exist"),
    ("is no longer", "plain English for what has ended"),
];

/// Every use of a banned phrase: file, line and what to say about it.
pub(crate) fn hits(sources: &Sources) -> BTreeSet<(String, usize, String)> {
    let mut found = BTreeSet::new();
    let forms = || BANNED.iter().flat_map(|(forms, better)| forms.split('|').map(move |form| (form, better)));
    for (file, text) in sources.keys().flat_map(|file| read_by_people(file, sources)) {
        let words = words(&text);
        for (phrase, better) in forms() {
            let expected: Vec<_> = phrase.split(' ').collect();
            let is = |((_, word), expected): (&(usize, String), &&str)| {
                word.eq_ignore_ascii_case(expected) || *expected == "_" && word != "."
            };
            for hit in words.windows(expected.len()).filter(|words| words.iter().zip(&expected).all(is)) {
                let line = sources[&file].lines().nth(hit[0].0 - 1).unwrap_or_default().trim();
                if !ALLOWED.iter().any(|(allowed, _)| line.contains(allowed)) {
                    found.insert((file.clone(), hit[0].0, format!("{line}  [{phrase}: write {better}]")));
                }
            }
        }
    }
    found
}

/// Line and text of each word, and a `.` where a phrase ends.
fn words(text: &str) -> Vec<(usize, String)> {
    let is_blank = |c: char| c.is_whitespace() || "\\/*#'’\"".contains(c);
    let text = text.replace(|c: char| !is_blank(c) && !c.is_alphanumeric() && c != '_', " . ");
    let lines = text.lines().enumerate();
    let words = lines.flat_map(|(n, line)| line.split(is_blank).map(move |word| (n + 1, word.to_owned())));
    words.filter(|(_, word)| !word.is_empty()).collect()
}

/// What people read of a file, each piece on its line, by file: a crate's root stands for all its modules.
fn read_by_people(file: &str, sources: &Sources) -> Vec<(String, String)> {
    let lines = |keep: fn(&str) -> String| sources[file].lines().map(keep).collect::<Vec<_>>().join("\n");
    let text = match (file.split('/').next().unwrap(), file.rsplit('.').next().unwrap()) {
        ("rust" | "tools" | "bridge", "rs") if is_crate_root(file) => {
            let modules = modules(file, file.rsplit_once('/').unwrap().0, &[], sources).into_iter();
            let text = |module: Module| {
                let mut lines = vec![String::new(); sources[&module.file].lines().count()];
                literals(module.tokens, &mut lines);
                (module.file, lines.join("\n"))
            };
            return modules.map(text).collect();
        }
        ("VZCore", "swift") if !file.starts_with("VZCore/Sources/") => return Vec::new(),
        ("VZCore" | "bridge", "swift") => lines(swift),
        ("Makefile", _) => lines(|line| line.split_once("##").map_or("", |(_, help)| help).to_owned()),
        ("packaging" | "scripts" | "guests", "sh") => lines(|line| {
            let printed = line.split_once("echo ").or(line.split_once("printf "));
            printed.map_or("", |(_, text)| text).to_owned()
        }),
        ("README.ja.md" | "CHANGELOG.md", _) => return Vec::new(),
        (top, "md") if top == file || top == "docs" => sources[file].clone(),
        (_, "txt") if file.contains("/snapshots/") => sources[file].clone(),
        _ => return Vec::new(),
    };
    vec![(file.to_owned(), text)]
}

fn is_crate_root(file: &str) -> bool {
    let (folder, name) = file.rsplit_once('/').unwrap();
    let is_root = matches!(name, "lib.rs" | "main.rs") && folder.contains("/src");
    is_root || name == "build.rs" || folder.ends_with("/src/bin")
}

/// Puts string literals and doc comments of Rust, as they are written, on their lines.
fn literals(tokens: TokenStream, lines: &mut [String]) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => literals(group.stream(), lines),
            TokenTree::Literal(literal) if literal.to_string().starts_with(['"', 'r']) => {
                let first = literal.span().start().line - 1;
                for (n, text) in literal.to_string().replace("\\n", "  ").split('\n').enumerate() {
                    lines[first + n] += text;
                }
            }
            _ => {}
        }
    }
}

/// String literals and comments of a line of Swift; what a literal interpolates is taken for text.
fn swift(line: &str) -> String {
    let line = line.replace("\\\"", "  ");
    let is_code = |at: &usize| line[..*at].matches('"').count().is_multiple_of(2);
    let comment = line.match_indices("//").map(|(at, _)| at).find(is_code);
    let (code, comment) = line.split_at(comment.unwrap_or(line.len()));
    code.split('"').skip(1).step_by(2).collect::<Vec<_>>().join("; ") + comment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banned_phrases_are_found_where_people_read_them_and_nowhere_else() {
        let log = "//! Not for\n//! ever.\nmod m;\nfn f() { info!(a = 1, \"x\\nTold \\\n anew\"); }\n";
        for (file, text, expected) in [
            ("rust/c/src/lib.rs", log, &[1, 4, 5][..]),
            ("bridge/src/bin/a.rs", "/// Its knock.\n#[arg(help = r\"is no port\")]\nstruct S;", &[1, 2]),
            ("VZCore/Sources/A/B.swift", "let a = 1 // told\nf(\"http://\\(b) is no file\")", &[1, 2]),
            ("Makefile", "demo: told ## Mend it", &[1]),
            ("packaging/a/b.sh", "words=1\n  echo \"nobody\"", &[2]),
            ("docs/a.md", "a task of\nits own, of their own", &[1, 2]),
            ("rust/t/tests/pages/snapshots/a.txt", "\ndeeds", &[2]),
            // Names, tests and plain English.
            ("rust/c/src/main.rs", "fn told() { f(\"There is no file\", b\"told\") }", &[]),
            ("rust/c/src/lib.rs", "#[cfg(test)]\nmod t { const A: &str = \"told\"; }", &[]),
            ("rust/c/tests/a.rs", "const A: &str = \"told\";", &[]),
            ("VZCore/Sources/A.swift", "func told(words: Int) { f(\"a\", told, \"b\") }", &[]),
            ("docs/a.md", "A `told_so`; it is no longer there, and indeed crosswords.", &[]),
            ("CHANGELOG.md", "told", &[]),
        ] {
            let found = hits(&[(file.to_owned(), text.to_owned())].into());
            assert_eq!(found.into_iter().map(|(_, line, _)| line).collect::<Vec<_>>(), expected, "{file}");
        }
    }
}
