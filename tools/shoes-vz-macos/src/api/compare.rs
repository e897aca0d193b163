//! Compares declarations with facts: each one of the stand-ins must match the macOS module's.

mod c;
mod comparison;
mod member;
mod whole;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::api::declaration::{Access, AnnotationKind, Conformance, Declaration, Place};
use crate::api::facts::{Facts, Version};
use comparison::{Comparison, Known, shown};

pub use comparison::{Counts, Outcome};
pub(crate) use whole::SYNTHESIZED_BY_IMPORTER;

/// Members of NSObject; an override of one needs no annotation.
const EVERY_OBJECT: [&str; 3] = ["isEqual(_:)", "hash", "description"];

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

impl Comparison<'_> {
    fn declaration(&mut self, it: &Declaration) {
        match self.access(it) {
            Access::Internal => {
                for annotation in &it.annotations {
                    let place = Place { line: annotation.line, ..it.place.clone() };
                    self.report(
                        &place,
                        format!(
                            "the annotation is before `{}`, which other modules do not see",
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
                    [] => self.report(
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
                            self.report(&it.place, "has a `// spi:` line, but no @_spi(StandIn)")
                        }
                    },
                    _ => self.report(&it.place, format!("`{}` has more than one annotation", shown(it))),
                }
            }
        }
    }

    fn spi(&mut self, it: &Declaration) {
        self.outcome.counts.spi += 1;
        let of_type = self.types.get(&it.owner).is_some_and(|owner| owner.access == Access::Spi);
        match it.annotations.as_slice() {
            [one] if one.kind == AnnotationKind::Spi && !one.text.is_empty() => {}
            [] if of_type => {}
            _ => self
                .report(&it.place, format!("`{}` is @_spi and needs one line `// spi: reason`", shown(it))),
        }
    }

    fn objc(&mut self, it: &Declaration, text: &str) {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let dated = fields.last().is_some_and(|version| Version::parse(version).is_some());
        match fields.as_slice() {
            [name, version] if dated => self.whole(it, name, version),
            [owner, case, version] if dated && case.contains('=') => self.case(it, owner, case, version),
            [owner, member, version] if dated => self.member(it, owner, member, version),
            _ => self.report(&it.place, format!("the annotation `{text}` is not `Class [+]selector macOS`")),
        }
    }

    /// Reports the lines of `by-hand.tsv` that the stand-ins do not need.
    fn leftovers(&mut self) {
        let in_table = |line| Place { file: "facts/by-hand.tsv".to_owned(), line };
        for row in &self.facts.rows {
            if !self.rows_used.contains(&row.line) {
                let message =
                    format!("nothing in the stand-ins is `{}`; delete the line", shown(&row.declaration));
                self.report(&in_table(row.line), message);
            }
        }
        for (line, gap) in &self.facts.gaps {
            if !self.gaps_used.contains(gap) {
                self.report(
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

#[cfg(test)]
mod tests;
