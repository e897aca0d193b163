//! The parser's position in a file's tokens, and what every declaration is read with.

use crate::api::declaration::{Conformance, Declaration, Finding, Place};
use crate::api::lexer::{Token, TokenKind};
use crate::api::swift_type::{SwiftType, TypeReader};

/// What a file holds.
#[derive(Debug, Default)]
pub struct Source {
    /// All declarations, including internal ones.
    pub declarations: Vec<Declaration>,
    /// Conformances that its extensions add.
    pub conformances: Vec<Conformance>,
    /// Modules that it re-exports with `@_exported`.
    pub exports: Vec<(Place, String)>,
    pub findings: Vec<Finding>,
}

/// Keywords before an introducer.
#[rustfmt::skip]
pub(super) const MODIFIERS: [&str; 29] = [
    "public", "open", "internal", "private", "fileprivate", "package", "static", "final", "override", "convenience",
    "required", "weak", "unowned", "lazy", "mutating", "nonmutating", "dynamic", "optional", "indirect", "nonisolated",
    "isolated", "prefix", "postfix", "infix", "consuming", "borrowing", "distributed", "sending", "actor_independent",
];

/// Keywords that begin a declaration.
#[rustfmt::skip]
pub(super) const INTRODUCERS: [&str; 16] = [
    "class", "struct", "enum", "protocol", "actor", "extension", "func", "init", "var", "let", "subscript", "case",
    "typealias", "deinit", "import", "associatedtype",
];

pub(super) struct Parser<'a> {
    pub(super) file: &'a str,
    pub(super) tokens: &'a [Token],
    pub(super) at: usize,
    pub(super) source: Source,
    pub(super) nested: usize,
}

impl Parser<'_> {
    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    pub(super) fn next_is(&self, symbol: char) -> bool {
        self.peek().is_some_and(|token| token.is(symbol))
    }

    pub(super) fn next_is_word(&self, word: &str) -> bool {
        self.peek().is_some_and(|token| token.is_word(word))
    }

    pub(super) fn name(&mut self) -> Option<String> {
        let name = self.peek()?.word()?.to_owned();
        self.at += 1;
        Some(name)
    }

    pub(super) fn read_type(&mut self) -> Option<SwiftType> {
        let mut reader = TypeReader { tokens: self.tokens, at: self.at, depth: 0 };
        let it = reader.read();
        if it.is_some() {
            self.at = reader.at;
        }
        it
    }

    pub(super) fn report(&mut self, line: usize, message: impl Into<String>) {
        let place = Place { file: self.file.to_owned(), line };
        self.source.findings.push(Finding { place, message: message.into() });
    }

    /// Past a bracket, what is in it and its partner; false if none stands here.
    pub(super) fn pass_brackets(&mut self) -> bool {
        let mut depth = 0_usize;
        while let Some(token) = self.peek() {
            match token.kind {
                TokenKind::Symbol('(' | '[' | '{') => depth += 1,
                TokenKind::Symbol(')' | ']' | '}') if depth > 0 => depth -= 1,
                _ if depth == 0 => return false,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return true;
            }
        }
        depth > 0
    }

    pub(super) fn pass_generics(&mut self) {
        if !self.next_is('<') {
            return;
        }
        let mut depth = 0_usize;
        while let Some(token) = self.peek() {
            match token.kind {
                TokenKind::Symbol('<') => depth += 1,
                TokenKind::Symbol('>') => depth -= 1,
                TokenKind::Symbol('{') => return,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }

    pub(super) fn pass_line(&mut self) {
        while self.peek().is_some_and(|token| !token.first) {
            self.at += 1;
        }
    }

    /// Past the `{ … }` that is next, if one is.
    pub(super) fn pass_body(&mut self) {
        if self.next_is('{') {
            self.pass_brackets();
        }
    }
}
