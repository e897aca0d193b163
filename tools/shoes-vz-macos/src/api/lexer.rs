//! Splits Swift text into tokens. Line comments are tokens too, because the annotations are line comments.

/// One token and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Line, from 1.
    pub line: usize,
    /// Whether it is the first token of its line.
    pub first: bool,
}

/// What a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenKind {
    /// A name or a keyword; backticks are taken off.
    Word(String),
    /// A number as written, without its underscores.
    Number(String),
    /// A string literal's text, interpolations and all.
    Text(String),
    /// One character of punctuation.
    Symbol(char),
    /// `->`.
    Arrow,
    /// `#if`, `#selector` and their like, with the `#`.
    Directive(String),
    /// A comment from `//` to the end of its line, without the slashes.
    Comment(String),
}

impl Token {
    /// The word this is, if it is one.
    pub fn word(&self) -> Option<&str> {
        match &self.kind {
            TokenKind::Word(word) => Some(word),
            _ => None,
        }
    }

    /// Whether this is that word.
    pub fn is_word(&self, word: &str) -> bool {
        self.word() == Some(word)
    }

    /// Whether this is that character.
    pub fn is(&self, symbol: char) -> bool {
        self.kind == TokenKind::Symbol(symbol)
    }
}

/// All tokens of a text. Text that is not Swift gives tokens too; the parser interprets them.
pub fn tokens(text: &str) -> Vec<Token> {
    Lexer { rest: text, line: 1, fresh: true, tokens: Vec::new() }.run()
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    /// Whether no token has been seen on this line yet.
    fresh: bool,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn run(mut self) -> Vec<Token> {
        while let Some(next) = self.rest.chars().next() {
            match next {
                _ if next.is_whitespace() => self.skip(next.len_utf8()),
                '/' if self.rest.starts_with("//") => self.comment(),
                '/' if self.rest.starts_with("/*") => self.block_comment(),
                '"' => self.text(0),
                '#' => self.hash(),
                '`' => self.quoted_name(),
                '-' if self.rest.starts_with("->") => self.push(TokenKind::Arrow, 2),
                '0'..='9' => self.number(),
                _ if is_name(next) => {
                    let length = self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len());
                    self.push(TokenKind::Word(self.rest[..length].to_owned()), length);
                }
                _ => self.push(TokenKind::Symbol(next), next.len_utf8()),
            }
        }
        self.tokens
    }

    /// Moves over `length` bytes, counting lines.
    fn skip(&mut self, length: usize) {
        let lines = self.rest[..length].matches('\n').count();
        self.line += lines;
        self.fresh |= lines > 0;
        self.rest = &self.rest[length..];
    }

    fn push(&mut self, kind: TokenKind, length: usize) {
        self.tokens.push(Token { kind, line: self.line, first: self.fresh });
        self.fresh = false;
        self.skip(length);
    }

    fn comment(&mut self) {
        let length = self.rest.find('\n').unwrap_or(self.rest.len());
        let text = self.rest[2..length].trim_end_matches('\r').to_owned();
        self.push(TokenKind::Comment(text), length);
    }

    /// `/* … */`, which nests in Swift. One never closed runs to the end.
    fn block_comment(&mut self) {
        let mut depth = 0;
        let mut at = 0;
        while at < self.rest.len() {
            let rest = &self.rest[at..];
            if rest.starts_with("/*") {
                depth += 1;
                at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    break;
                }
            } else {
                at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
        self.skip(at);
    }

    /// `#if` and so on, or a string with `#` around it.
    fn hash(&mut self) {
        let hashes = self.rest.len() - self.rest.trim_start_matches('#').len();
        let after = &self.rest[hashes..];
        if after.starts_with('"') {
            return self.text(hashes);
        }
        let name = after.find(|c| !is_name(c)).unwrap_or(after.len());
        let length = hashes + name;
        self.push(TokenKind::Directive(self.rest[..length].to_owned()), length);
    }

    /// A string literal with `hashes` before and after its quotes. `\(…)` may contain strings.
    fn text(&mut self, hashes: usize) {
        let fence = "#".repeat(hashes);
        let quotes = if self.rest[hashes..].starts_with("\"\"\"") { "\"\"\"" } else { "\"" };
        let close = format!("{quotes}{fence}");
        let escape = format!("\\{fence}");
        let start = hashes + quotes.len();
        let mut at = start;
        let mut depth = 0_usize;
        let mut length = self.rest.len();
        let mut end = self.rest.len();
        while at < self.rest.len() {
            let rest = &self.rest[at..];
            if depth == 0 && rest.starts_with(&close) {
                end = at;
                length = at + close.len();
                break;
            }
            if quotes.len() == 1 && rest.starts_with('\n') {
                // A literal of one line that is not closed in it: leave the rest of the file readable.
                end = at;
                length = at;
                break;
            }
            if rest.starts_with(&escape) {
                at += escape.len();
                match self.rest[at..].chars().next() {
                    Some('(') if depth == 0 => {
                        depth = 1;
                        at += 1;
                    }
                    Some(escaped) => at += escaped.len_utf8(),
                    None => {}
                }
                continue;
            }
            let next = rest.chars().next().unwrap_or(' ');
            match next {
                '(' if depth > 0 => depth += 1,
                ')' if depth > 0 => depth -= 1,
                _ => {}
            }
            at += next.len_utf8();
        }
        let text = self.rest[start.min(end)..end].to_owned();
        self.push(TokenKind::Text(text), length);
    }

    fn quoted_name(&mut self) {
        match self.rest[1..].find(['`', '\n']) {
            Some(length) if self.rest[1 + length..].starts_with('`') => {
                self.push(TokenKind::Word(self.rest[1..1 + length].to_owned()), length + 2);
            }
            _ => self.push(TokenKind::Symbol('`'), 1),
        }
    }

    fn number(&mut self) {
        let bytes = self.rest.as_bytes();
        let mut length = 0;
        while length < bytes.len() {
            let digit = bytes[length].is_ascii_alphanumeric() || bytes[length] == b'_';
            // `1.5`, but not `1...5` and not `1.description`.
            let point = bytes[length] == b'.' && bytes.get(length + 1).is_some_and(u8::is_ascii_digit);
            if !digit && !point {
                break;
            }
            length += 1;
        }
        self.push(TokenKind::Number(self.rest[..length].replace('_', "")), length);
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<TokenKind> {
        tokens(text).into_iter().map(|token| token.kind).collect()
    }

    #[test]
    fn words_in_strings_and_comments_are_no_words() {
        let found = kinds("\"public func\" /* public /* nested */ class */ x // public\n");
        let expected = [
            TokenKind::Text("public func".into()),
            TokenKind::Word("x".into()),
            TokenKind::Comment(" public".into()),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_interpolation_may_hold_quotes_and_brackets() {
        assert_eq!(
            kinds(r#""a \(f(")")) b" c"#),
            [TokenKind::Text(r#"a \(f(")")) b"#.into()), TokenKind::Word("c".into())]
        );
    }

    #[test]
    fn strings_of_many_lines_and_with_hashes_end_where_they_end() {
        let found = tokens("\"\"\"\n  a \"quoted\" b\n  \"\"\"\nx #\"\\ \" \"# y");
        let lines: Vec<_> = found.iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 4, 4, 4]);
        assert_eq!(found[2].kind, TokenKind::Text("\\ \" ".into()));
    }

    #[test]
    fn a_string_that_is_never_closed_ends_with_its_line() {
        let found = tokens("let a = \"open\nclass B");
        assert!(found.iter().any(|token| token.is_word("class") && token.line == 2 && token.first));
    }

    #[test]
    fn ranges_and_members_of_numbers_are_not_parts_of_them() {
        assert_eq!(kinds("1_000...2")[0], TokenKind::Number("1000".into()));
        assert_eq!(kinds("1.description")[1], TokenKind::Symbol('.'));
        assert_eq!(kinds("1.5"), [TokenKind::Number("1.5".into())]);
    }

    #[test]
    fn text_that_is_not_swift_is_read_to_its_end() {
        for text in ["\"", "#", "`a", "/*", "\"\"\"", "\"\\", "\"\\(", "#\"", "0x", "\u{1F600}", "\\"] {
            tokens(text);
        }
    }
}
