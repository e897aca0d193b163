//! Functions, initializers, properties, cases: what is between a declaration's keyword and its body.

use crate::api::declaration::{Declaration, Kind, Parameter};
use crate::api::lexer::{Token, TokenKind};
use crate::api::parser::cursor::{INTRODUCERS, MODIFIERS, Parser};
use crate::api::swift_type::SwiftType;

/// Whether `(a: A)` is called with `a:`.
#[derive(Clone, Copy, PartialEq)]
enum Labels {
    Always,
    /// Subscripts: only `(a b: A)` is.
    WhereTwoNames,
}

impl Parser<'_> {
    pub(super) fn function(&mut self, mut it: Declaration) -> Option<()> {
        it.kind = Kind::Function;
        it.name = match self.peek()?.word() {
            Some(_) => self.name()?,
            None => self.operator()?,
        };
        self.pass_generics();
        it.parameters = self.parameters(Labels::Always)?;
        self.effects(&mut it);
        it.gives = self.result()?;
        self.finish(it)
    }

    pub(super) fn initializer(&mut self, mut it: Declaration) -> Option<()> {
        it.kind = Kind::Initializer;
        it.name = "init".to_owned();
        if self.next_is('?') || self.next_is('!') {
            it.failable = true;
            self.at += 1;
        }
        self.pass_generics();
        it.parameters = self.parameters(Labels::Always)?;
        self.effects(&mut it);
        self.finish(it)
    }

    pub(super) fn subscript(&mut self, mut it: Declaration, set_within: bool) -> Option<()> {
        it.kind = Kind::Subscript;
        it.name = "subscript".to_owned();
        self.pass_generics();
        it.parameters = self.parameters(Labels::WhereTwoNames)?;
        it.gives = self.result()?;
        self.pass_constraints();
        it.settable = self.accessors_set() && !set_within;
        self.finish(it)
    }

    pub(super) fn alias(&mut self, mut it: Declaration) -> Option<()> {
        it.kind = Kind::Alias;
        it.name = self.name()?;
        self.pass_generics();
        if self.next_is(':') {
            self.at += 1;
            self.read_type()?;
        }
        if self.next_is('=') {
            self.at += 1;
            it.gives = Some(self.read_type()?);
        }
        self.source.declarations.push(it);
        Some(())
    }

    /// `case a = 1, b(C)`.
    pub(super) fn cases(&mut self, mut it: Declaration) -> Option<()> {
        it.kind = Kind::Case;
        it.on_type = false;
        loop {
            let mut one = it.clone();
            one.name = self.name()?;
            if self.next_is('(') {
                one.parameters = self.parameters(Labels::Always)?;
            }
            if self.next_is('=') {
                self.at += 1;
                one.number = self.number();
                self.pass_value();
            }
            self.source.declarations.push(one);
            if !self.next_is(',') {
                return Some(());
            }
            self.at += 1;
        }
    }

    /// `var a: A = b, c: C { … }`.
    pub(super) fn properties(&mut self, it: Declaration, fixed: bool) -> Option<()> {
        loop {
            let mut one = it.clone();
            one.kind = Kind::Property;
            one.name = self.name()?;
            let mut computed = false;
            if self.next_is(':') {
                self.at += 1;
                one.gives = Some(self.read_type()?);
            }
            if self.next_is('=') {
                self.at += 1;
                let value = self.value();
                one.gives = one.gives.or_else(|| kind_of(value));
                // Of constants, which C's macros become; other values may be anything.
                let constant = if it.owner.is_empty() && fixed { number(value) } else { None };
                one.number = option_number(value).or(constant);
            }
            let mut settable = true;
            if self.next_is('{') {
                computed = !self.observers_next();
                settable = !computed || self.accessors_set();
                self.pass_body();
            }
            one.settable = settable && !fixed;
            let more = !computed && self.next_is(',');
            self.source.declarations.push(one);
            if !more {
                return Some(());
            }
            self.at += 1;
        }
    }

    fn finish(&mut self, it: Declaration) -> Option<()> {
        self.pass_constraints();
        self.pass_body();
        self.source.declarations.push(it);
        Some(())
    }

    fn operator(&mut self) -> Option<String> {
        let mut name = String::new();
        while let TokenKind::Symbol(symbol) = self.peek()?.kind {
            if symbol == '(' {
                break;
            }
            name.push(symbol);
            self.at += 1;
        }
        (!name.is_empty()).then_some(name)
    }

    /// `(_ a: A, b c: C = d, e: E...)`.
    fn parameters(&mut self, labels: Labels) -> Option<Vec<Parameter>> {
        let mut parameters = Vec::new();
        if !self.next_is('(') {
            return None;
        }
        self.at += 1;
        while !self.next_is(')') {
            // `a: A` or `a b: A`; a type alone, as cases have them, has no name.
            let ahead = |count: usize| self.tokens.get(self.at + count);
            let colon = |count| ahead(count).is_some_and(|token| token.is(':'));
            let word = |count| ahead(count).is_some_and(|token| token.word().is_some());
            let named = word(0) && (colon(1) || (word(1) && colon(2)));
            let mut label = String::new();
            if named {
                label = self.name()?;
                if !self.next_is(':') {
                    self.name()?;
                } else if labels == Labels::WhereTwoNames {
                    label.clear();
                }
                self.at += 1;
            }
            if label == "_" {
                label.clear();
            }
            let kind = self.read_type()?;
            while self.next_is('.') {
                self.at += 1;
            }
            let default = if self.next_is('=') {
                self.at += 1;
                let text = self.value().iter().map(spelled).collect::<String>();
                Some(text)
            } else {
                None
            };
            parameters.push(Parameter { label, kind, default });
            if self.next_is(',') {
                self.at += 1;
            } else if !self.next_is(')') {
                return None;
            }
        }
        self.at += 1;
        Some(parameters)
    }

    fn effects(&mut self, it: &mut Declaration) {
        loop {
            if self.next_is_word("throws") || self.next_is_word("rethrows") {
                it.throws = true;
                self.at += 1;
                if self.next_is('(') {
                    self.pass_brackets();
                }
            } else if self.next_is_word("async") {
                it.is_async = true;
                self.at += 1;
            } else {
                return;
            }
        }
    }

    /// The result after `->`; `Void` where there is none.
    fn result(&mut self) -> Option<Option<SwiftType>> {
        if self.peek().is_some_and(|token| token.kind == TokenKind::Arrow) {
            self.at += 1;
            return Some(Some(self.read_type()?));
        }
        Some(Some(SwiftType::Tuple(Vec::new())))
    }

    fn pass_constraints(&mut self) {
        if self.next_is_word("where") {
            while self.peek().is_some_and(|token| !token.is('{') && !token.first) {
                self.at += 1;
            }
        }
    }

    /// The tokens of an initial or default value; behind them stands what ends it.
    fn value(&mut self) -> &[Token] {
        let start = self.at;
        self.pass_value();
        &self.tokens[start..self.at]
    }

    fn pass_value(&mut self) {
        let start = self.at;
        while let Some(token) = self.peek() {
            match &token.kind {
                TokenKind::Symbol(',' | ')' | ']' | '}') => return,
                TokenKind::Symbol('{') if self.at > start && self.observers_next() => return,
                TokenKind::Symbol('(' | '[' | '{') => {
                    self.pass_brackets();
                    continue;
                }
                TokenKind::Symbol('@') | TokenKind::Comment(_) | TokenKind::Directive(_)
                    if token.first && self.at > start =>
                {
                    return;
                }
                TokenKind::Word(word)
                    if token.first
                        && self.at > start
                        && (MODIFIERS.contains(&word.as_str()) || INTRODUCERS.contains(&word.as_str())) =>
                {
                    return;
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// Whether the `{` here opens `willSet` or `didSet`.
    fn observers_next(&self) -> bool {
        let next = self.tokens.get(self.at + 1).and_then(Token::word);
        matches!(next, Some("willSet" | "didSet"))
    }

    /// Whether the accessors in the `{ … }` here have a setter.
    fn accessors_set(&self) -> bool {
        let mut depth = 0_usize;
        for token in &self.tokens[self.at.min(self.tokens.len())..] {
            match &token.kind {
                TokenKind::Symbol('{' | '(' | '[') => depth += 1,
                TokenKind::Symbol('}' | ')' | ']') => depth = depth.saturating_sub(1),
                TokenKind::Word(word) if depth == 1 && (word == "set" || word == "_modify") => return true,
                _ => {}
            }
            if depth == 0 {
                return false;
            }
        }
        false
    }

    /// The whole number here, which is not passed.
    fn number(&self) -> Option<i64> {
        number(&self.tokens[self.at..])
    }
}

fn number(tokens: &[Token]) -> Option<i64> {
    let (negative, tokens) = match tokens {
        [minus, rest @ ..] if minus.is('-') => (true, rest),
        tokens => (false, tokens),
    };
    let TokenKind::Number(text) = &tokens.first()?.kind else { return None };
    let value = match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok()?,
        None => text.parse().ok()?,
    };
    if let [_, one, two, by, ..] = tokens
        && one.is('<')
        && two.is('<')
        && let TokenKind::Number(by) = &by.kind
    {
        return value.checked_shl(by.parse().ok()?);
    }
    Some(if negative { -value } else { value })
}

/// The number of `Options(rawValue: 1 << 0)`.
fn option_number(value: &[Token]) -> Option<i64> {
    let at = value.windows(2).position(|pair| pair[0].is_word("rawValue") && pair[1].is(':'))?;
    number(&value[at + 2..])
}

/// The type of a value that says it: a literal, or `Type(…)`.
fn kind_of(value: &[Token]) -> Option<SwiftType> {
    match value {
        [token] => match &token.kind {
            TokenKind::Text(_) => Some(SwiftType::named("String")),
            TokenKind::Number(text) if text.contains('.') => Some(SwiftType::named("Double")),
            TokenKind::Number(_) => Some(SwiftType::named("Int")),
            TokenKind::Word(word) if word == "true" || word == "false" => Some(SwiftType::named("Bool")),
            _ => None,
        },
        [minus, number] if minus.is('-') && matches!(number.kind, TokenKind::Number(_)) => {
            Some(SwiftType::named("Int"))
        }
        [.., close] if close.is(')') => {
            let end = value.iter().position(|token| token.is('('))?;
            let words: Vec<_> = value[..end].iter().filter_map(Token::word).collect();
            let dotted = 2 * words.len() == end + 1;
            let is_type = words.last()?.starts_with(char::is_uppercase);
            (dotted && is_type).then(|| SwiftType::named(&words.join(".")))
        }
        _ => None,
    }
}

fn spelled(token: &Token) -> String {
    match &token.kind {
        TokenKind::Word(text) | TokenKind::Number(text) | TokenKind::Directive(text) => text.clone(),
        TokenKind::Text(text) => format!("\"{text}\""),
        TokenKind::Symbol(symbol) => symbol.to_string(),
        TokenKind::Arrow => "->".to_owned(),
        TokenKind::Comment(_) => String::new(),
    }
}
