//! The state of a comparison, and what every kind of annotation is checked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::api::declaration::{Access, Declaration, Finding, Kind, Place};
use crate::api::facts::{Facts, NEWEST, Version};
use crate::api::swift_type::SwiftType;

/// Statistics of a comparison.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Declarations that other modules see, except those for tests only.
    pub public: usize,
    /// Public declarations without a finding.
    pub compared: usize,
    /// Declarations for tests only.
    pub spi: usize,
    /// Distinct SDK symbols by kind.
    pub symbols: BTreeMap<&'static str, usize>,
    /// SDK symbols in both packages.
    pub in_both: usize,
    /// SDK symbols in one package.
    pub in_one: usize,
    /// SDK symbols in `by-hand.tsv` only.
    pub by_hand: usize,
    /// Declarations with the same documented declaration.
    pub documented: usize,
}

#[derive(Debug, Default)]
pub struct Outcome {
    /// Sorted by place.
    pub findings: Vec<Finding>,
    /// Not errors, for example deprecations.
    pub warnings: Vec<Finding>,
    pub counts: Counts,
}

/// The sources that have a symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    InBoth,
    InOne,
    ByHand,
}

pub(super) struct Comparison<'a> {
    pub(super) facts: &'a Facts,
    /// The stand-ins' types by path.
    pub(super) types: HashMap<String, &'a Declaration>,
    pub(super) declarations: &'a [Declaration],
    pub(super) outcome: Outcome,
    /// The symbols seen: kind and sources.
    pub(super) known: BTreeMap<String, (&'static str, Known)>,
    pub(super) rows_used: BTreeSet<usize>,
    pub(super) gaps_used: BTreeSet<(String, String)>,
    pub(super) wrong: BTreeSet<Place>,
}

impl Comparison<'_> {
    /// The effective access of a declaration: at most that of the types it is in.
    pub(super) fn access(&self, it: &Declaration) -> Access {
        let mut path = it.owner.as_str();
        let mut access = it.access;
        while !path.is_empty() {
            access = access.min(self.types.get(path).map_or(Access::Public, |owner| owner.access));
            path = path.rsplit_once('.').map_or("", |(outer, _)| outer);
        }
        access
    }

    /// Compares the version in an annotation with the one in the facts.
    pub(super) fn version(&mut self, it: &Declaration, claimed: &str, symbol: &str, known: Option<Version>) {
        let Some(claimed) = Version::parse(claimed) else {
            return self.report(&it.place, format!("`{claimed}` is not a macOS version (11.0)"));
        };
        match known {
            Some(known) if known > NEWEST => {
                self.report(
                    &it.place,
                    format!("`{symbol}` came with macOS {known}; the deployment target is {NEWEST}"),
                );
            }
            Some(known) if known != claimed => {
                self.report(&it.place, format!("`{symbol}` came with macOS {known}, not {claimed}"));
            }
            Some(_) => {}
            None => self.report(&it.place, format!("no source has the macOS version of `{symbol}`")),
        }
    }

    /// Compares with the documented declaration, which may differ in parameter names only.
    pub(super) fn documented(&mut self, it: &Declaration) {
        let Some(row) = self.facts.row(it) else {
            let owner = if it.owner.is_empty() { "-" } else { &it.owner };
            return self.report(
                &it.place,
                format!("facts/by-hand.tsv has no documented declaration of {owner} `{}`", it.full_name()),
            );
        };
        self.rows_used.insert(row.line);
        let mut stands = self.resolved(it);
        let documented = self.resolved(&row.declaration);
        // A parameter may be `@Sendable` where the documented one is not.
        for (ours, theirs) in stands.parameters.iter_mut().zip(&documented.parameters) {
            if ours.kind.without_sendable() == theirs.kind {
                ours.kind = theirs.kind.clone();
            }
        }
        let (stands, documented) = (stands.to_string(), documented.to_string());
        if stands == documented && row.declaration.number == it.number {
            self.outcome.counts.documented += 1;
        } else {
            self.report(&it.place, format!("`{stands}` is documented as `{documented}`"));
        }
    }

    /// The declaration with its types' full names.
    pub(super) fn resolved(&self, it: &Declaration) -> Declaration {
        let mut it = it.clone();
        let owner = it.owner.clone();
        for parameter in &mut it.parameters {
            parameter.kind = self.full(&parameter.kind, &owner);
        }
        it.gives = it.gives.map(|kind| self.full(&kind, &owner));
        it
    }

    pub(super) fn full(&self, kind: &SwiftType, owner: &str) -> SwiftType {
        let inner = |it: &SwiftType| Box::new(self.full(it, owner));
        match kind {
            SwiftType::Named(name, arguments) => {
                let mut path = owner;
                let mut name = if name == "Self" { owner.to_owned() } else { name.clone() };
                while !path.is_empty() {
                    let nested = format!("{path}.{name}");
                    if self.types.contains_key(&nested) {
                        name = nested;
                        break;
                    }
                    path = path.rsplit_once('.').map_or("", |(outer, _)| outer);
                }
                SwiftType::Named(name, arguments.iter().map(|it| self.full(it, owner)).collect())
            }
            SwiftType::Optional(it) => SwiftType::Optional(inner(it)),
            SwiftType::Array(it) => SwiftType::Array(inner(it)),
            SwiftType::Dictionary(key, value) => SwiftType::Dictionary(inner(key), inner(value)),
            SwiftType::Tuple(elements) => {
                SwiftType::Tuple(elements.iter().map(|it| self.full(it, owner)).collect())
            }
            SwiftType::Function { takes, gives, sendable } => SwiftType::Function {
                takes: takes.iter().map(|it| self.full(it, owner)).collect(),
                gives: inner(gives),
                sendable: *sendable,
            },
            SwiftType::Any(it) => SwiftType::Any(inner(it)),
            SwiftType::Inout(it) => SwiftType::Inout(inner(it)),
        }
    }

    pub(super) fn saw(&mut self, kind: &'static str, symbol: String, known: Known) {
        self.known.insert(symbol, (kind, known));
    }

    pub(super) fn report(&mut self, place: &Place, message: impl Into<String>) {
        self.wrong.insert(place.clone());
        self.outcome.findings.push(Finding { place: place.clone(), message: message.into() });
    }
}

/// A declaration's owner and name, for messages.
pub(super) fn shown(it: &Declaration) -> String {
    let name = it.full_name();
    if it.owner.is_empty() { name } else { format!("{}.{name}", it.owner) }
}

/// Whether a Swift type is one of the possible imports, ignoring nil and `@Sendable`.
pub(super) fn agrees(swift: &SwiftType, may: &[SwiftType]) -> bool {
    may.contains(&swift.without_optional().without_sendable())
}

pub(super) fn alternatives(may: &[SwiftType]) -> String {
    may.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(" or ")
}

pub(super) fn kind_word(it: &Declaration) -> &'static str {
    match it.kind {
        Kind::Property => "property",
        Kind::Initializer => "initializer",
        _ => "method",
    }
}
