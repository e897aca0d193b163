//! C functions, types, constants and enum cases: `// c: name macOS`.

use crate::api::compare::comparison::{Comparison, Known, agrees, alternatives, shown};
use crate::api::declaration::{Declaration, Kind};
use crate::api::facts::Version;
use crate::api::types;

impl Comparison<'_> {
    pub(super) fn c(&mut self, it: &Declaration, text: &str) {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [name, version] = fields.as_slice() else {
            return self.report(&it.place, format!("the annotation `{text}` is not `name macOS`"));
        };
        let (name, _) = name.split_once('=').unwrap_or((name, ""));
        let facts = self.facts;
        let row = facts.row(it);
        let symbol = row.and_then(|row| row.symbol.as_deref()).unwrap_or(&it.name);
        if symbol != name {
            self.report(&it.place, format!("`{}` is `{symbol}` in C, not `{name}`", shown(it)));
        }
        let case = facts.c.cases.get(name);
        if case.is_none() {
            self.documented(it);
        }
        self.use_row(it);
        // A constant's version is in PyObjC's metadata, a member's its type's unless it has one of its own.
        let constant = facts.pyobjc.constants.get(name).map(|since| since.unwrap_or(Version(10, 0)));
        let own = row.and_then(|row| row.introduced);
        let owner = self.types.get(&it.owner).and_then(|owner| facts.row(owner)?.introduced);
        let since = constant.or(own).or(owner);
        self.version(it, version, name, since);
        let (kind, known) = if let Some(signature) = facts.c.functions.get(name) {
            self.c_signature(it, name, signature);
            ("C functions", Known::InOne)
        } else if let Some((owner, value)) = case {
            self.c_case(it, name, owner, *value);
            ("C cases", Known::InOne)
        } else if facts.pyobjc.constants.contains_key(name) {
            ("C constants", Known::InOne)
        } else {
            let kind = match it.kind {
                Kind::Function => "C functions",
                Kind::Property if it.owner.is_empty() => "C constants",
                _ => "C types",
            };
            (kind, Known::ByHand)
        };
        self.saw(kind, name.to_owned(), known);
    }

    fn c_signature(&mut self, it: &Declaration, name: &str, signature: &[String]) {
        let Some((result, arguments)) = signature.split_first() else { return };
        let resolved = self.resolved(it);
        if it.kind != Kind::Function || resolved.parameters.len() != arguments.len() {
            return self
                .report(&it.place, format!("`{name}` is a function of {} arguments", arguments.len()));
        }
        let result = std::iter::once(("the result".to_owned(), result, resolved.gives.as_ref()));
        let arguments = arguments.iter().zip(&resolved.parameters).enumerate();
        let arguments =
            arguments.map(|(index, (rust, it))| (format!("argument {}", index + 1), rust, Some(&it.kind)));
        for (what, rust, swift) in result.chain(arguments) {
            let may = types::of_c(rust);
            let Some(swift) = swift else { continue };
            if may.is_empty() {
                self.report(
                    &it.place,
                    format!("{what} of `{name}` is `{rust}`, which api/types.rs does not know; add it"),
                );
            } else if !agrees(swift, &may) {
                self.report(
                    &it.place,
                    format!("{what} of `{name}` is `{rust}`: {}, not `{swift}`", alternatives(&may)),
                );
            }
        }
    }

    fn c_case(&mut self, it: &Declaration, name: &str, owner: &str, value: i64) {
        if it.owner != owner {
            self.report(&it.place, format!("`{name}` belongs to `{owner}`, not `{}`", it.owner));
        }
        if it.number != Some(value) {
            let number = it.number.map_or("nothing".to_owned(), |number| number.to_string());
            self.report(&it.place, format!("`{name}` is {value}, not {number}"));
        }
    }
}
