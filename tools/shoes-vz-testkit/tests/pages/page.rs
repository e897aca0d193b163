//! One page: its code blocks, its code in running text, its links.

use std::process::Command;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::programs::{Help, PROGRAMS};

pub(crate) struct Page {
    pub(crate) name: String,
    pub(crate) blocks: Vec<Block>,
    /// Code in running text and in tables, with its line.
    pub(crate) inline: Vec<(usize, String)>,
    /// Files linked to, with the line.
    pub(crate) links: Vec<(usize, String)>,
}

/// A fenced block.
pub(crate) struct Block {
    pub(crate) line: usize,
    pub(crate) language: String,
    pub(crate) text: String,
    /// The reason given by `<!-- not run: REASON -->` before it.
    pub(crate) not_run: Option<String>,
}

/// One complete shell command.
pub(crate) struct Typed {
    pub(crate) line: usize,
    pub(crate) text: String,
}

impl Page {
    pub(crate) fn read(name: &str, text: &str) -> Self {
        let mut page = Self { name: name.into(), blocks: Vec::new(), inline: Vec::new(), links: Vec::new() };
        let mut mark = None;
        let mut block: Option<Block> = None;
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            let line = text[..range.start].matches('\n').count() + 1;
            match event {
                Event::Html(html) => {
                    let comment = html.trim().strip_prefix("<!--").and_then(|h| h.strip_suffix("-->"));
                    if let Some(reason) = comment.and_then(|c| c.trim().strip_prefix("not run:")) {
                        assert!(!reason.trim().is_empty(), "{name}, line {line}: no reason is given");
                        mark = Some(reason.trim().to_owned());
                    }
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    let language = match kind {
                        CodeBlockKind::Fenced(info) => info.to_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    // The text begins on the line after the fence.
                    block =
                        Some(Block { line: line + 1, language, text: String::new(), not_run: mark.take() });
                }
                Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
                Event::Text(part) => {
                    if let Some(block) = &mut block {
                        block.text.push_str(&part);
                    }
                }
                Event::Code(code) => page.inline.push((line, code.to_string())),
                Event::Start(Tag::Link { dest_url, .. }) => {
                    let file = dest_url.split('#').next().unwrap_or_default();
                    if !file.is_empty() && !file.contains(':') {
                        page.links.push((line, file.to_owned()));
                    }
                }
                Event::Start(Tag::Paragraph | Tag::Heading { .. }) => mark = None,
                _ => {}
            }
        }
        page
    }

    /// The commands in running text: those of shoes-vz and of make.
    pub(crate) fn inline_commands(&self) -> Vec<Typed> {
        let is_command = |code: &&(usize, String)| {
            let first = code.1.split(' ').find(|w| !w.contains('=')).unwrap_or_default();
            let program = first.rsplit('/').next().unwrap_or_default();
            code.1.contains(' ') && (first == "make" || first == "$A" || PROGRAMS.contains(&program))
        };
        let typed = |(line, text): &(usize, String)| Typed { line: *line, text: text.replace('…', "x") };
        self.inline.iter().filter(is_command).map(typed).collect()
    }

    /// Flags and variables in running text that no program has.
    pub(crate) fn unknown_names(&self, known: &Help) -> Vec<String> {
        let mut unknown = Vec::new();
        for (line, code) in &self.inline {
            for word in code.split([' ', '=', '`', '|', '"', '[', ']', '(', ')', ',', ';']) {
                let is_flag =
                    word.strip_prefix("--").is_some_and(|f| f.starts_with(|c: char| c.is_ascii_lowercase()));
                // The flags of other programs are not known here.
                let ours = code.starts_with("--") || self.is_ours(code);
                if (is_flag && ours && !known.has_flag(word))
                    || (word.starts_with("SHOESVZ_") && !known.has_variable(word))
                {
                    unknown.push(format!("{}, line {line}: no program has {word}", self.name));
                }
            }
        }
        unknown
    }

    fn is_ours(&self, code: &str) -> bool {
        PROGRAMS.iter().any(|p| code.starts_with(p))
    }
}

impl Typed {
    /// Without a trailing `&` or comment.
    pub(crate) fn foreground(&self) -> String {
        let (before, last) = self.text.rsplit_once('\n').map_or(("", self.text.as_str()), |(b, l)| (b, l));
        let last = without_comment(last).trim_end();
        let last = last.strip_suffix('&').filter(|l| !l.ends_with('&')).unwrap_or(last).trim_end();
        if before.is_empty() { last.to_owned() } else { format!("{before}\n{last}") }
    }

    /// The expected exit code, by a comment `# exit code N`.
    pub(crate) fn exit_code(&self) -> i32 {
        let code = self.text.rsplit_once("# exit code ").and_then(|(_, code)| code.trim().parse().ok());
        code.unwrap_or(0)
    }
}

impl Block {
    pub(crate) fn is_shell(&self) -> bool {
        ["sh", "bash", "shell", "console"].contains(&self.language.as_str())
    }

    /// Split where bash has read a complete command.
    pub(crate) fn commands(&self) -> Vec<Typed> {
        let mut commands = Vec::new();
        let mut text = String::new();
        let mut begin = self.line;
        for (at, line) in self.text.lines().enumerate() {
            let line = match self.language.as_str() {
                "console" if text.is_empty() => match line.strip_prefix("$ ") {
                    Some(line) => line,
                    None => continue,
                },
                _ => line,
            };
            if text.is_empty() {
                begin = self.line + at;
            }
            text.push_str(line);
            text.push('\n');
            if is_complete(&text) {
                let typed = std::mem::take(&mut text);
                if typed.lines().any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#')) {
                    commands.push(Typed { line: begin, text: typed.trim_end().to_owned() });
                }
            }
        }
        assert!(text.is_empty(), "line {begin}: bash waits for more after {text:?}");
        commands
    }

    /// The lines without trailing comments and blanks.
    pub(crate) fn without_comments(&self) -> Vec<String> {
        let lines = self.text.lines().map(|l| without_comment(l).trim_end().to_owned());
        lines.filter(|l| !l.is_empty()).collect()
    }
}

/// A line without its trailing comment. Pages have no quoted `#` after a blank.
pub(crate) fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        return "";
    }
    line.find(" #").map_or(line, |at| &line[..at])
}

fn is_complete(text: &str) -> bool {
    let continued = text.trim_end_matches('\n').ends_with('\\');
    let read = Command::new("bash").args(["-n", "-c", text]).output().expect("bash runs");
    // An unfinished here-document is a warning only.
    !continued && read.status.success() && read.stderr.is_empty()
}
