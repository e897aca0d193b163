//! Declarations against facts: each of the stand-ins' must be what macOS' own modules declare.

mod c;
mod member;
mod whole;

pub(crate) use whole::MADE_BY_IMPORTER;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::api::Finding;
use crate::api::declaration::{Access, AnnotationKind, Conformance, Declaration, Kind, Place};
use crate::api::facts::{Facts, NEWEST, Version};
use crate::api::swift_type::SwiftType;

/// What every class has from NSObject; a stand-in's override of it adds nothing.
const EVERY_OBJECT: [&str; 3] = ["isEqual(_:)", "hash", "description"];

/// What was compared with what.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Declarations other modules see, without those for tests alone.
    pub public: usize,
    /// Of those, the ones every fact agrees with.
    pub compared: usize,
    /// Declarations for tests alone.
    pub spi: usize,
    /// SDK symbols by kind: distinct ones, however many declarations stand for them.
    pub symbols: BTreeMap<&'static str, usize>,
    /// SDK symbols both packages know.
    pub in_both: usize,
    /// SDK symbols one package knows.
    pub in_one: usize,
    /// SDK symbols only `by-hand.tsv` knows.
    pub by_hand: usize,
    /// Declarations compared with a documented one.
    pub documented: usize,
}

/// The result of a comparison.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Everything wrong, in order of place.
    pub findings: Vec<Finding>,
    /// What is not wrong, but should be known.
    pub warnings: Vec<Finding>,
    /// How much was compared.
    pub counts: Counts,
}

/// Compares the stand-ins' declarations with the facts.
pub fn compare(facts: &Facts, declarations: &[Declaration], conformances: &[Conformance]) -> Outcome {
    let types: HashMap<String, &Declaration> =
        declarations.iter().filter(|it| it.kind.is_type()).map(|it| (it.path(), it)).collect();
    let mut comparison = Comparison {
        facts,
        types,
        declarations,
        outcome: Outcome::default(),
        known: BTreeMap::new(),
        rows_used: BTreeSet::new(),
        gaps_used: BTreeSet::new(),
        wrong: BTreeSet::new(),
    };
    for it in declarations {
        comparison.declaration(it);
    }
    for it in conformances {
        comparison.conformance(it);
    }
    comparison.leftovers();
    comparison.finish()
}

/// Which sources know a symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    InBoth,
    InOne,
    ByHand,
}

struct Comparison<'a> {
    facts: &'a Facts,
    /// The stand-ins' types by path.
    types: HashMap<String, &'a Declaration>,
    declarations: &'a [Declaration],
    outcome: Outcome,
    /// Symbols seen: their kind, and who knows them.
    known: BTreeMap<String, (&'static str, Known)>,
    rows_used: BTreeSet<usize>,
    gaps_used: BTreeSet<(String, String)>,
    wrong: BTreeSet<Place>,
}

impl Comparison<'_> {
    fn declaration(&mut self, it: &Declaration) {
        match self.access(it) {
            Access::Internal => {
                for annotation in &it.annotations {
                    let place = Place { line: annotation.line, ..it.place.clone() };
                    self.tell(
                        &place,
                        format!(
                            "the annotation stands before `{}`, which nobody outside sees",
                            it.full_name()
                        ),
                    );
                }
            }
            Access::Spi => self.spi(it),
            Access::Public => {
                self.outcome.counts.public += 1;
                if it.overrides
                    && it.annotations.is_empty()
                    && EVERY_OBJECT.contains(&it.full_name().as_str())
                {
                    return;
                }
                match it.annotations.as_slice() {
                    [] => self.tell(
                        &it.place,
                        format!(
                            "`{}` has no `// objc:` or `// c:` line before it, and is not @_spi",
                            shown(it)
                        ),
                    ),
                    [one] => match one.kind {
                        AnnotationKind::ObjC => self.objc(it, &one.text),
                        AnnotationKind::C => self.c(it, &one.text),
                        AnnotationKind::Spi => {
                            self.tell(&it.place, "has a `// spi:` line, but no @_spi(StandIn)")
                        }
                    },
                    _ => self.tell(&it.place, format!("`{}` has more than one annotation", shown(it))),
                }
            }
        }
    }

    /// How far a declaration is seen: a member of an extension no further than the type.
    fn access(&self, it: &Declaration) -> Access {
        let mut path = it.owner.as_str();
        let mut access = it.access;
        while !path.is_empty() {
            access = access.min(self.types.get(path).map_or(Access::Public, |owner| owner.access));
            path = path.rsplit_once('.').map_or("", |(outer, _)| outer);
        }
        access
    }

    fn spi(&mut self, it: &Declaration) {
        self.outcome.counts.spi += 1;
        let of_type = self.types.get(&it.owner).is_some_and(|owner| owner.access == Access::Spi);
        match it.annotations.as_slice() {
            [one] if one.kind == AnnotationKind::Spi && !one.text.is_empty() => {}
            [] if of_type => {}
            _ => self.tell(&it.place, format!("`{}` is @_spi and needs one line `// spi: why`", shown(it))),
        }
    }

    fn objc(&mut self, it: &Declaration, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let dated = words.last().is_some_and(|version| Version::parse(version).is_some());
        match words.as_slice() {
            [name, version] if dated => self.whole(it, name, version),
            [owner, case, version] if dated && case.contains('=') => self.case(it, owner, case, version),
            [owner, member, version] if dated => self.member(it, owner, member, version),
            _ => self.tell(&it.place, format!("the annotation `{text}` is not `Class [+]selector macOS`")),
        }
    }

    /// The version an annotation claims, against the one the facts have.
    fn version(&mut self, it: &Declaration, claimed: &str, symbol: &str, known: Option<Version>) {
        let Some(claimed) = Version::parse(claimed) else {
            return self.tell(&it.place, format!("`{claimed}` is no macOS version (11.0)"));
        };
        match known {
            Some(known) if known > NEWEST => {
                self.tell(
                    &it.place,
                    format!("`{symbol}` came with macOS {known}; the deployment target is {NEWEST}"),
                );
            }
            Some(known) if known != claimed => {
                self.tell(&it.place, format!("`{symbol}` came with macOS {known}, not {claimed}"));
            }
            Some(_) => {}
            None => self.tell(&it.place, format!("no source tells with which macOS `{symbol}` came")),
        }
    }

    /// The documented declaration, which must be the same but for names of parameters.
    fn documented(&mut self, it: &Declaration) {
        let Some(row) = self.facts.row(it) else {
            let owner = if it.owner.is_empty() { "-" } else { &it.owner };
            return self.tell(
                &it.place,
                format!("facts/by-hand.tsv has no documented declaration of {owner} `{}`", it.full_name()),
            );
        };
        self.rows_used.insert(row.line);
        let mut stands = self.resolved(it);
        let documented = self.resolved(&row.declaration);
        // Who calls with `@Sendable` where none is asked for, may.
        for (ours, theirs) in stands.parameters.iter_mut().zip(&documented.parameters) {
            if ours.kind.without_sendable() == theirs.kind {
                ours.kind = theirs.kind.clone();
            }
        }
        let (stands, documented) = (stands.to_string(), documented.to_string());
        if stands == documented && row.declaration.number == it.number {
            self.outcome.counts.documented += 1;
        } else {
            self.tell(&it.place, format!("`{stands}` is documented as `{documented}`"));
        }
    }

    /// The declaration with its types' full names, as seen from outside.
    fn resolved(&self, it: &Declaration) -> Declaration {
        let mut it = it.clone();
        let owner = it.owner.clone();
        for parameter in &mut it.parameters {
            parameter.kind = self.full(&parameter.kind, &owner);
        }
        it.gives = it.gives.map(|kind| self.full(&kind, &owner));
        it
    }

    fn full(&self, kind: &SwiftType, owner: &str) -> SwiftType {
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

    fn saw(&mut self, kind: &'static str, symbol: String, known: Known) {
        self.known.insert(symbol, (kind, known));
    }

    fn tell(&mut self, place: &Place, message: impl Into<String>) {
        self.wrong.insert(place.clone());
        self.outcome.findings.push(Finding { place: place.clone(), message: message.into() });
    }

    /// Lines of `by-hand.tsv` that nothing in the stand-ins needs.
    fn leftovers(&mut self) {
        let in_table = |line| Place { file: "facts/by-hand.tsv".to_owned(), line };
        for row in &self.facts.rows {
            if !self.rows_used.contains(&row.line) {
                let message =
                    format!("nothing in the stand-ins is `{}`; delete the line", shown(&row.declaration));
                self.tell(&in_table(row.line), message);
            }
        }
        for (line, gap) in &self.facts.gaps {
            if !self.gaps_used.contains(gap) {
                self.tell(
                    &in_table(*line),
                    format!("the gap `{} {}` is not needed; delete the line", gap.0, gap.1),
                );
            }
        }
    }

    fn finish(mut self) -> Outcome {
        let public = self.declarations.iter().filter(|it| self.access(it) == Access::Public);
        self.outcome.counts.compared = public.filter(|it| !self.wrong.contains(&it.place)).count();
        for (kind, known) in self.known.values() {
            *self.outcome.counts.symbols.entry(kind).or_default() += 1;
            match known {
                Known::InBoth => self.outcome.counts.in_both += 1,
                Known::InOne => self.outcome.counts.in_one += 1,
                Known::ByHand => self.outcome.counts.by_hand += 1,
            }
        }
        self.outcome.findings.sort();
        self.outcome.findings.dedup();
        self.outcome.warnings.sort();
        self.outcome
    }
}

/// A declaration for a message: with its type, without what it takes and gives.
fn shown(it: &Declaration) -> String {
    let name = it.full_name();
    if it.owner.is_empty() { name } else { format!("{}.{name}", it.owner) }
}

/// Whether a Swift type and the ones an SDK type may become agree, nil apart.
fn agrees(swift: &SwiftType, may: &[SwiftType]) -> bool {
    may.contains(&swift.without_optional().without_sendable())
}

fn alternatives(may: &[SwiftType]) -> String {
    may.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(" or ")
}

fn kind_word(it: &Declaration) -> &'static str {
    match it.kind {
        Kind::Property => "property",
        Kind::Initializer => "initializer",
        _ => "method",
    }
}

#[cfg(test)]
mod tests;
