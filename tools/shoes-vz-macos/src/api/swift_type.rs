//! Swift types, as far as signatures need them, in one spelling: two that mean the same print the same.

use std::fmt;

use crate::api::lexer::{Token, TokenKind};

/// A type. `@escaping` and ownership are left out: they belong to the parameter, and documentation leaves them out too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SwiftType {
    /// `A`, `A.B`, `A<B>`.
    Named(String, Vec<SwiftType>),
    /// `A?`.
    Optional(Box<SwiftType>),
    /// `[A]`.
    Array(Box<SwiftType>),
    /// `[A: B]`.
    Dictionary(Box<SwiftType>, Box<SwiftType>),
    /// `(A, B)`; none is `Void`.
    Tuple(Vec<SwiftType>),
    /// `(A) -> B`.
    Function {
        takes: Vec<SwiftType>,
        /// What it gives.
        gives: Box<SwiftType>,
        /// Whether it is `@Sendable`.
        sendable: bool,
    },
    /// `any A`.
    Any(Box<SwiftType>),
    /// `inout A`.
    Inout(Box<SwiftType>),
}

/// Names that mean the same type on macOS.
const SYNONYMS: [(&str, &str); 6] = [
    ("dispatch_queue_t", "DispatchQueue"),
    ("NSRect", "CGRect"),
    ("NSSize", "CGSize"),
    ("NSPoint", "CGPoint"),
    ("vmnet_mode_t", "operating_modes_t"),
    ("CInt", "Int32"),
];

impl SwiftType {
    /// `A`, under the name it is compared by.
    pub fn named(name: &str) -> SwiftType {
        let name = SYNONYMS.iter().find(|(synonym, _)| *synonym == name).map_or(name, |(_, name)| name);
        if name == "Void" {
            return SwiftType::Tuple(Vec::new());
        }
        SwiftType::Named(name.to_owned(), Vec::new())
    }

    /// The type written in `text`, if that is all it holds.
    pub fn parse(text: &str) -> Option<SwiftType> {
        let tokens = crate::api::lexer::tokens(text);
        let mut reader = TypeReader { tokens: &tokens, at: 0, depth: 0 };
        let it = reader.read()?;
        (reader.at == tokens.len()).then_some(it)
    }

    /// What is within `?`, or the type itself.
    pub fn without_optional(&self) -> &SwiftType {
        match self {
            SwiftType::Optional(inner) => inner,
            other => other,
        }
    }

    /// The type, of a function one that need not be `@Sendable`.
    pub fn without_sendable(&self) -> SwiftType {
        match self {
            SwiftType::Function { takes, gives, .. } => {
                SwiftType::Function { takes: takes.clone(), gives: gives.clone(), sendable: false }
            }
            other => other.clone(),
        }
    }

    /// Every name in it.
    pub fn names(&self) -> Vec<String> {
        let of = |all: &[SwiftType]| all.iter().flat_map(SwiftType::names).collect::<Vec<_>>();
        match self {
            SwiftType::Named(name, arguments) => [vec![name.clone()], of(arguments)].concat(),
            SwiftType::Optional(it) | SwiftType::Array(it) | SwiftType::Any(it) | SwiftType::Inout(it) => {
                it.names()
            }
            SwiftType::Dictionary(key, value) => [key.names(), value.names()].concat(),
            SwiftType::Tuple(elements) => of(elements),
            SwiftType::Function { takes, gives, .. } => [of(takes), gives.names()].concat(),
        }
    }

    /// Whether nil is one of its values.
    pub fn is_optional(&self) -> bool {
        matches!(self, SwiftType::Optional(_))
    }
}

impl fmt::Display for SwiftType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SwiftType::Named(name, arguments) if arguments.is_empty() => write!(f, "{name}"),
            SwiftType::Named(name, arguments) => write!(f, "{name}<{}>", list(arguments)),
            SwiftType::Optional(inner) => match **inner {
                SwiftType::Function { .. } | SwiftType::Any(_) => write!(f, "({inner})?"),
                _ => write!(f, "{inner}?"),
            },
            SwiftType::Array(element) => write!(f, "[{element}]"),
            SwiftType::Dictionary(key, value) => write!(f, "[{key}: {value}]"),
            SwiftType::Tuple(elements) if elements.is_empty() => write!(f, "Void"),
            SwiftType::Tuple(elements) => write!(f, "({})", list(elements)),
            SwiftType::Function { takes, gives, sendable } => {
                let sendable = if *sendable { "@Sendable " } else { "" };
                write!(f, "{sendable}({}) -> {gives}", list(takes))
            }
            SwiftType::Any(inner) => write!(f, "any {inner}"),
            SwiftType::Inout(inner) => write!(f, "inout {inner}"),
        }
    }
}

fn list(types: &[SwiftType]) -> String {
    types.iter().map(SwiftType::to_string).collect::<Vec<_>>().join(", ")
}

/// Reads a type off the front of tokens. Gives up, rather than going deeper, on what nests absurdly.
pub(crate) struct TypeReader<'a> {
    pub(crate) tokens: &'a [Token],
    pub(crate) at: usize,
    pub(crate) depth: usize,
}

const DEEPEST: usize = 40;

impl TypeReader<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn takes(&mut self, symbol: char) -> bool {
        let is = self.peek().is_some_and(|token| token.is(symbol));
        self.at += usize::from(is);
        is
    }

    /// A type, or nothing if none stands here.
    pub(crate) fn read(&mut self) -> Option<SwiftType> {
        self.depth += 1;
        let it = if self.depth > DEEPEST { None } else { self.read_within() };
        self.depth -= 1;
        it
    }

    fn read_within(&mut self) -> Option<SwiftType> {
        let mut sendable = false;
        let mut inout = false;
        let mut existential = false;
        loop {
            let token = self.peek()?;
            if token.is('@') {
                sendable |= self.tokens.get(self.at + 1)?.is_word("Sendable");
                self.at += 2;
                // `@convention(block)`
                if self.peek().is_some_and(|token| token.is('('))
                    && self.tokens.get(self.at - 1).is_some_and(|token| token.is_word("convention"))
                {
                    self.at += 3;
                }
                continue;
            }
            match token.word() {
                Some("inout") => inout = true,
                Some("any") => existential = true,
                Some("borrowing" | "consuming" | "sending" | "isolated" | "__owned" | "some") => {}
                _ => break,
            }
            self.at += 1;
        }
        let mut it = self.read_plain(sendable)?;
        if existential {
            it = match it {
                // `any A?` is not Swift, but `(any A)?` is read without its brackets.
                SwiftType::Optional(inner) => SwiftType::Optional(Box::new(SwiftType::Any(inner))),
                it => SwiftType::Any(Box::new(it)),
            };
        }
        if inout {
            it = SwiftType::Inout(Box::new(it));
        }
        Some(it)
    }

    fn read_plain(&mut self, sendable: bool) -> Option<SwiftType> {
        let mut it = if self.takes('[') {
            let element = self.read()?;
            let it = if self.takes(':') {
                SwiftType::Dictionary(Box::new(element), Box::new(self.read()?))
            } else {
                SwiftType::Array(Box::new(element))
            };
            self.takes(']').then_some(it)?
        } else if self.takes('(') {
            let elements = self.read_elements()?;
            self.read_function(elements, sendable)?
        } else {
            self.read_name()?
        };
        // A mark on a new line is an operator's or a ternary's, not the type's.
        while self.peek().is_some_and(|token| !token.first && (token.is('?') || token.is('!'))) {
            self.at += 1;
            it = SwiftType::Optional(Box::new(it));
        }
        Some(it)
    }

    /// The elements up to `)`, with or without labels.
    fn read_elements(&mut self) -> Option<Vec<SwiftType>> {
        let mut elements = Vec::new();
        while !self.takes(')') {
            // `name: Type`, `_ name: Type`
            for names in [1, 2] {
                let labelled = self.tokens.get(self.at..self.at + names + 1).is_some_and(|tokens| {
                    tokens[names].is(':') && tokens[..names].iter().all(|token| token.word().is_some())
                });
                if labelled {
                    self.at += names + 1;
                    break;
                }
            }
            elements.push(self.read()?);
            if !self.takes(',') && !self.peek()?.is(')') {
                return None;
            }
        }
        Some(elements)
    }

    /// What follows `(…)`: a function's arrow, or nothing.
    fn read_function(&mut self, mut elements: Vec<SwiftType>, sendable: bool) -> Option<SwiftType> {
        let mut ahead = self.at;
        while self.tokens.get(ahead).is_some_and(|token| matches!(token.word(), Some("async" | "throws"))) {
            ahead += 1;
        }
        if self.tokens.get(ahead).is_some_and(|token| token.kind == TokenKind::Arrow) {
            self.at = ahead + 1;
            let gives = Box::new(self.read()?);
            return Some(SwiftType::Function { takes: elements, gives, sendable });
        }
        if elements.len() == 1 {
            return elements.pop();
        }
        Some(SwiftType::Tuple(elements))
    }

    /// `A.B<C>`, `A & B`.
    fn read_name(&mut self) -> Option<SwiftType> {
        let mut name = self.peek()?.word()?.to_owned();
        self.at += 1;
        let mut arguments = Vec::new();
        loop {
            if self.takes('.') {
                name = format!("{name}.{}", self.peek()?.word()?);
                self.at += 1;
            } else if self.takes('<') {
                while !self.takes('>') {
                    arguments.push(self.read()?);
                    if !self.takes(',') && !self.peek()?.is('>') {
                        return None;
                    }
                }
            } else if self.takes('&') {
                name = format!("{name} & {}", self.peek()?.word()?);
                self.at += 1;
            } else {
                break;
            }
        }
        Some(match (name.as_str(), arguments.len()) {
            ("Optional", 1) => SwiftType::Optional(Box::new(arguments.pop()?)),
            ("Array", 1) => SwiftType::Array(Box::new(arguments.pop()?)),
            (_, 0) => SwiftType::named(&name),
            _ => SwiftType::Named(name, arguments),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(text: &str) -> String {
        SwiftType::parse(text).map_or_else(|| "none".into(), |it| it.to_string())
    }

    #[test]
    fn types_that_mean_the_same_are_spelled_the_same() {
        assert_eq!(spelled("Optional<Array<Int>>"), spelled("[Int]?"));
        assert_eq!(spelled("@escaping (((any Error)?)) -> ()"), "((any Error)?) -> Void");
        assert_eq!(
            spelled("(_ result: Result<Void, any Error>) -> Void"),
            "(Result<Void, any Error>) -> Void"
        );
        assert_eq!(spelled("dispatch_queue_t"), spelled("DispatchQueue"));
        assert_eq!(spelled("[String : VZSharedDirectory]"), "[String: VZSharedDirectory]");
    }

    #[test]
    fn types_that_differ_are_spelled_differently() {
        assert_ne!(spelled("(Int) -> Void"), spelled("@Sendable (Int) -> Void"));
        assert_ne!(spelled("UnsafeMutablePointer<Int>?"), spelled("UnsafeMutablePointer<Int>"));
        assert_ne!(spelled("(any A)?"), spelled("any A"));
        assert_ne!(spelled("VZVirtualMachine.State"), spelled("VZVirtualMachine"));
    }

    #[test]
    fn text_that_is_not_a_type_is_none() {
        let deep = "[".repeat(10_000);
        for text in ["", "(", "[A", "A<", "A<B", "A.", "[A:", ")", "A B", "@", "any", "A &", &deep] {
            assert_eq!(spelled(text), "none", "{text}");
        }
    }
}
