//! The stand-ins' declarations, each with its annotation.

use std::fmt;

use crate::api::swift_type::SwiftType;

/// One declaration of a type, a member, a function or a constant.
#[derive(Debug, Clone)]
pub struct Declaration {
    pub place: Place,
    /// The type it is in, dotted; empty at the top level.
    pub owner: String,
    pub kind: Kind,
    /// Its name: `start`, `init`, `==`.
    pub name: String,
    pub parameters: Vec<Parameter>,
    /// A function's result or a property's type; none if it is not written.
    pub gives: Option<SwiftType>,
    /// Of the type (`static`, `class`) rather than of its instances.
    pub on_type: bool,
    /// `throws`.
    pub throws: bool,
    /// `async`.
    pub is_async: bool,
    /// `init?`.
    pub failable: bool,
    /// A property that can be set from other modules.
    pub settable: bool,
    /// `override`.
    pub overrides: bool,
    /// `@MainActor`, or in a type that is.
    pub main_actor: bool,
    /// The types and protocols it inherits.
    pub inherits: Vec<String>,
    /// A case's or an option's number.
    pub number: Option<i64>,
    /// Which modules may see it.
    pub access: Access,
    /// In a protocol: a requirement.
    pub required: bool,
    /// In an extension.
    pub in_extension: bool,
    /// The annotations right before it.
    pub annotations: Vec<Annotation>,
}

/// A file and a line in it, from 1; line 0 is the whole file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The file's path from the repository's root.
    pub file: String,
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// A difference between the sources and the facts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub place: Place,
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// What is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Class,
    Struct,
    Enum,
    Protocol,
    Function,
    Initializer,
    Property,
    Subscript,
    Case,
    Alias,
}

impl Kind {
    /// Whether it is a type with members.
    pub fn is_type(self) -> bool {
        matches!(self, Kind::Class | Kind::Struct | Kind::Enum | Kind::Protocol)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Class => "class",
            Kind::Struct => "struct",
            Kind::Enum => "enum",
            Kind::Protocol => "protocol",
            Kind::Function => "func",
            Kind::Initializer => "init",
            Kind::Property => "var",
            Kind::Subscript => "subscript",
            Kind::Case => "case",
            Kind::Alias => "typealias",
        })
    }
}

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The argument label; empty for `_`.
    pub label: String,
    pub kind: SwiftType,
    /// Its default as written, if it has one.
    pub default: Option<String>,
}

/// Which modules see a declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Only the module that declares it.
    Internal,
    /// Modules that import it with `@_spi(StandIn)`.
    Spi,
    /// All modules.
    Public,
}

/// `// objc: …`, `// c: …` or `// spi: …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    pub line: usize,
    pub kind: AnnotationKind,
    /// What follows the colon.
    pub text: String,
}

/// The kind of an annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnnotationKind {
    /// The declaration is an Objective-C symbol's import.
    ObjC,
    /// The declaration is a C symbol's import.
    C,
    /// The declaration has no counterpart and is for tests only; the text is the reason.
    Spi,
}

impl Annotation {
    /// Reads an annotation from a comment. `text` is what follows the slashes.
    pub fn read(text: &str, line: usize) -> Option<Annotation> {
        let (tag, text) = text.trim_start().split_once(':')?;
        let kind = match tag {
            "objc" => AnnotationKind::ObjC,
            "c" => AnnotationKind::C,
            "spi" => AnnotationKind::Spi,
            _ => return None,
        };
        Some(Annotation { line, kind, text: text.trim().to_owned() })
    }
}

/// An extension that makes a type conform to protocols.
#[derive(Debug, Clone)]
pub struct Conformance {
    pub place: Place,
    /// The type, dotted.
    pub owner: String,
    /// The protocols.
    pub inherits: Vec<String>,
}

impl Declaration {
    /// A declaration with only its place filled in.
    pub fn at(place: Place, owner: &str, access: Access) -> Declaration {
        Declaration {
            place,
            owner: owner.to_owned(),
            kind: Kind::Class,
            name: String::new(),
            parameters: Vec::new(),
            gives: None,
            on_type: false,
            throws: false,
            is_async: false,
            failable: false,
            settable: false,
            overrides: false,
            main_actor: false,
            inherits: Vec::new(),
            number: None,
            access,
            required: false,
            in_extension: false,
            annotations: Vec::new(),
        }
    }

    /// The type's own dotted path, for a declaration of a type.
    pub fn path(&self) -> String {
        if self.owner.is_empty() { self.name.clone() } else { format!("{}.{}", self.owner, self.name) }
    }

    /// The Swift name: `start(options:completionHandler:)`, `state`, `init(url:)`.
    pub fn full_name(&self) -> String {
        let labels = |parameters: &[Parameter]| {
            parameters
                .iter()
                .map(|it| if it.label.is_empty() { "_:".to_owned() } else { format!("{}:", it.label) })
                .collect::<String>()
        };
        match self.kind {
            Kind::Function | Kind::Initializer | Kind::Subscript => {
                format!("{}({})", self.name, labels(&self.parameters))
            }
            _ => self.name.clone(),
        }
    }
}

impl fmt::Display for Declaration {
    /// The declaration in one line, as two are compared and shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.on_type {
            write!(f, "class ")?;
        }
        let parameters = || {
            let one = |it: &Parameter| {
                let label = if it.label.is_empty() { "_" } else { &it.label };
                format!("{label}: {}", it.kind)
            };
            self.parameters.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        match self.kind {
            Kind::Initializer => {
                write!(f, "init{}({})", if self.failable { "?" } else { "" }, parameters())?;
            }
            Kind::Function => write!(f, "func {}({})", self.name, parameters())?,
            Kind::Subscript => write!(f, "subscript({})", parameters())?,
            kind => write!(f, "{kind} {}", self.name)?,
        }
        if self.is_async {
            write!(f, " async")?;
        }
        if self.throws {
            write!(f, " throws")?;
        }
        match (&self.gives, self.kind) {
            (Some(kind), Kind::Property) => write!(f, ": {kind}"),
            (Some(kind), Kind::Alias) => write!(f, " = {kind}"),
            (Some(SwiftType::Tuple(none)), _) if none.is_empty() => Ok(()),
            (Some(kind), _) => write!(f, " -> {kind}"),
            (None, _) => Ok(()),
        }
    }
}
