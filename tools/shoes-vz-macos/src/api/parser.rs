//! Reads declarations from tokens. Bodies are skipped; what cannot be read is a finding.

mod cursor;
mod signature;

use crate::api::declaration::{Access, Annotation, AnnotationKind, Conformance, Declaration, Kind, Place};
use crate::api::lexer::{Token, TokenKind, tokens};
use crate::api::swift_type::SwiftType;
use cursor::{INTRODUCERS, MODIFIERS, Parser};

pub use cursor::Source;

/// Reads a file's declarations. `file` is how findings call it.
pub fn parse(file: &str, text: &str) -> Source {
    // Of the comments only annotations matter, and each of those has a separate line.
    let mut tokens = tokens(text);
    tokens.retain(|token| match &token.kind {
        TokenKind::Comment(text) => token.first && Annotation::read(text, token.line).is_some(),
        _ => true,
    });
    let mut parser = Parser { file, tokens: &tokens, at: 0, source: Source::default(), nested: 0 };
    parser.scope(&Scope {
        owner: String::new(),
        access: Access::Public,
        default: Access::Internal,
        main_actor: false,
        kind: ScopeKind::File,
    });
    parser.source
}

/// No stand-in nests deeper.
const DEEPEST: usize = 30;

enum ScopeKind {
    File,
    Type(Kind),
    Extension,
}

struct Scope {
    owner: String,
    /// How far the type itself is seen: no member is seen further.
    access: Access,
    /// How far a member without a modifier is seen.
    default: Access,
    main_actor: bool,
    kind: ScopeKind,
}

/// What stands before a declaration's own word.
#[derive(Default)]
struct Before {
    line: usize,
    annotations: Vec<Annotation>,
    access: Option<Access>,
    spi: bool,
    exported: bool,
    on_type: bool,
    overrides: bool,
    main_actor: bool,
    nonisolated: bool,
    /// `private(set)`.
    set_within: bool,
}

impl Parser<'_> {
    /// The declarations up to the `}` that closes the scope, or the end.
    fn scope(&mut self, scope: &Scope) {
        self.nested += 1;
        let mut before = Before::default();
        while let Some(token) = self.peek() {
            let line = token.line;
            match &token.kind {
                TokenKind::Symbol('}') => {
                    self.at += 1;
                    break;
                }
                TokenKind::Comment(text) => {
                    before.annotations.extend(Annotation::read(text, line));
                    self.at += 1;
                }
                TokenKind::Symbol('@') => self.attribute(&mut before),
                TokenKind::Word(word) => {
                    let word = word.clone();
                    if self.introduces(&word) {
                        before.line = line;
                        self.at += 1;
                        self.declaration(scope, &word, std::mem::take(&mut before));
                    } else if MODIFIERS.contains(&word.as_str()) || word == "class" {
                        self.modifier(&word, &mut before);
                    } else {
                        self.lost_annotations(&mut before);
                        self.at += 1;
                    }
                }
                TokenKind::Directive(_) => self.at += 1,
                _ => {
                    self.lost_annotations(&mut before);
                    if !self.pass_brackets() {
                        self.at += 1;
                    }
                }
            }
        }
        self.lost_annotations(&mut before);
        self.nested -= 1;
    }

    fn lost_annotations(&mut self, before: &mut Before) {
        for annotation in std::mem::take(&mut before.annotations) {
            self.report(annotation.line, "the annotation is not before a declaration");
        }
    }

    /// Whether the word here begins a declaration, rather than modifying one as in `class func`.
    fn introduces(&self, word: &str) -> bool {
        let next = self.tokens.get(self.at + 1).and_then(Token::word);
        let modifies =
            |next| MODIFIERS.contains(&next) || ["func", "var", "let", "subscript"].contains(&next);
        INTRODUCERS.contains(&word) && !(word == "class" && next.is_some_and(modifies))
    }

    fn attribute(&mut self, before: &mut Before) {
        let name = self.tokens.get(self.at + 1).and_then(Token::word).unwrap_or_default().to_owned();
        before.main_actor |= name == "MainActor";
        before.spi |= name == "_spi";
        before.exported |= name == "_exported";
        self.at += 2;
        if self.peek().is_some_and(|token| token.is('(') && !token.first) {
            self.pass_brackets();
        }
    }

    fn modifier(&mut self, word: &str, before: &mut Before) {
        self.at += 1;
        // `private(set)`, `nonisolated(unsafe)`, `unowned(safe)`
        let mut of_set = false;
        if self.next_is('(') {
            of_set = self.tokens.get(self.at + 1).is_some_and(|token| token.is_word("set"));
            self.pass_brackets();
        }
        match word {
            "public" | "open" if !of_set => before.access = Some(Access::Public),
            "private" | "fileprivate" | "internal" | "package" if of_set => before.set_within = true,
            "private" | "fileprivate" | "internal" | "package" => before.access = Some(Access::Internal),
            "static" | "class" => before.on_type = true,
            "override" => before.overrides = true,
            "nonisolated" => before.nonisolated = true,
            _ => {}
        }
    }

    fn declaration(&mut self, scope: &Scope, word: &str, before: Before) {
        match word {
            "import" => {
                if before.exported
                    && let Some(module) = self.peek().and_then(Token::word)
                {
                    let place = Place { file: self.file.to_owned(), line: before.line };
                    self.source.exports.push((place, module.to_owned()));
                }
                return self.pass_line();
            }
            "deinit" => return self.pass_body(),
            "extension" => return self.extension(scope, before),
            _ => {}
        }
        let default = if word == "case" { scope.access } else { scope.default };
        let mut access = before.access.unwrap_or(default);
        if before.spi && access == Access::Public {
            access = Access::Spi;
        }
        let place = Place { file: self.file.to_owned(), line: before.line };
        let mut it = Declaration::at(place, &scope.owner, access.min(scope.access));
        it.on_type = before.on_type;
        it.overrides = before.overrides;
        it.main_actor = (before.main_actor || scope.main_actor) && !before.nonisolated;
        it.required = matches!(scope.kind, ScopeKind::Type(Kind::Protocol));
        it.in_extension = matches!(scope.kind, ScopeKind::Extension);
        it.annotations = before.annotations;

        let read = match word {
            "class" | "actor" => self.type_declaration(it, Kind::Class),
            "struct" => self.type_declaration(it, Kind::Struct),
            "enum" => self.type_declaration(it, Kind::Enum),
            "protocol" => self.type_declaration(it, Kind::Protocol),
            "case" => self.cases(it),
            "var" | "let" => self.properties(it, word == "let" || before.set_within),
            "typealias" | "associatedtype" => self.alias(it),
            "func" => self.function(it),
            "init" => self.initializer(it),
            _ => self.subscript(it, before.set_within),
        };
        if read.is_none() {
            self.report(before.line, format!("this {word} cannot be read"));
        }
    }

    fn type_declaration(&mut self, mut it: Declaration, kind: Kind) -> Option<()> {
        it.kind = kind;
        it.name = self.name()?;
        self.pass_generics();
        it.inherits = self.inherited();
        let scope = Scope {
            owner: it.path(),
            access: it.access,
            default: if kind == Kind::Protocol { it.access } else { Access::Internal },
            main_actor: it.main_actor,
            kind: ScopeKind::Type(kind),
        };
        self.source.declarations.push(it);
        self.members(&scope)
    }

    fn extension(&mut self, scope: &Scope, before: Before) {
        let Some(SwiftType::Named(owner, _)) = self.read_type() else {
            return self.report(before.line, "this extension cannot be read");
        };
        let inherits = self.inherited();
        let mut default = before.access.unwrap_or(Access::Internal);
        if before.spi && default == Access::Public {
            default = Access::Spi;
        }
        for annotation in before.annotations {
            if annotation.kind != AnnotationKind::Spi || default != Access::Spi {
                self.report(
                    annotation.line,
                    "the annotation is before an extension; annotate each of its members instead",
                );
            }
        }
        let place = Place { file: self.file.to_owned(), line: before.line };
        self.source.conformances.push(Conformance { place, owner: owner.clone(), inherits });
        let scope = Scope {
            owner,
            access: scope.access,
            default,
            main_actor: before.main_actor,
            kind: ScopeKind::Extension,
        };
        if self.members(&scope).is_none() {
            self.report(before.line, "this extension cannot be read");
        }
    }

    /// From before the `{` of a type or an extension to behind its `}`.
    fn members(&mut self, scope: &Scope) -> Option<()> {
        while !self.next_is('{') {
            self.peek()?;
            self.at += 1;
        }
        if self.nested >= DEEPEST {
            self.pass_brackets();
            return None;
        }
        self.at += 1;
        self.scope(scope);
        Some(())
    }

    /// `: A, @unchecked B, C<D>` up to `{` or `where`.
    fn inherited(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        if !self.next_is(':') {
            return names;
        }
        self.at += 1;
        while let Some(token) = self.peek() {
            if token.is('{') || token.is_word("where") {
                break;
            }
            let start = self.at;
            match self.read_type() {
                Some(kind) => names.push(kind.to_string()),
                None => self.at = start + 1,
            }
            if self.next_is(',') {
                self.at += 1;
            }
        }
        names
    }
}

#[cfg(test)]
mod tests;
