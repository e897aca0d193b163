//! Classes, protocols, enums and constants: annotations with a name only.

use crate::api::compare::comparison::{Comparison, Known, shown};
use crate::api::declaration::{Access, Conformance, Declaration, Kind};
use crate::api::facts::Version;
use crate::api::names;
use crate::api::swift_type::SwiftType;

/// Members that Swift's importer synthesizes for an error enum (SE-0112) and for options.
#[rustfmt::skip]
pub(crate) const SYNTHESIZED_BY_IMPORTER: [&str; 10] = [
    "rawValue", "init(rawValue:)", "code", "userInfo", "init(_:userInfo:)", "errorDomain", "errorCode", "errorUserInfo",
    "==", "hash(into:)",
];

/// What imported enums, option sets and errors conform to.
#[rustfmt::skip]
const OF_VALUES: [&str; 8] = [
    "Sendable", "Hashable", "Equatable", "RawRepresentable", "OptionSet", "Error", "CustomNSError", "NSObjectProtocol",
];

impl Comparison<'_> {
    pub(super) fn whole(&mut self, it: &Declaration, symbol: &str, version: &str) {
        let facts = self.facts;
        if facts.pyobjc.classes.contains_key(symbol) {
            self.class(it, symbol);
            self.version(it, version, symbol, self.since(it, symbol));
        } else if facts.pyobjc.protocols.contains_key(symbol) {
            self.protocol(it, symbol);
            self.version(it, version, symbol, self.since(it, symbol));
        } else if facts.pyobjc.enums.contains_key(symbol) {
            self.enumeration(it, symbol, version);
        } else {
            self.report(&it.place, format!("the SDK has no class, protocol or enum `{symbol}`"));
        }
    }

    /// The macOS version of a class, protocol or enum: from the packages if they have it, else from `by-hand.tsv`.
    fn since(&self, it: &Declaration, symbol: &str) -> Option<Version> {
        let by_hand = self.facts.row(it).and_then(|row| row.introduced);
        self.facts.pyobjc.introduced(symbol).or(by_hand)
    }

    fn class(&mut self, it: &Declaration, symbol: &str) {
        let facts = self.facts;
        self.named_as(it, symbol, Kind::Class);
        let sdk = &facts.pyobjc.classes[symbol];
        let superclass = it.inherits.first().map_or("nothing", String::as_str);
        if facts.swift_type_name(&sdk.superclass) != superclass {
            self.report(
                &it.place,
                format!("`{symbol}` inherits from `{}`, not `{superclass}`", sdk.superclass),
            );
        }
        let Some(other) = facts.objc2.classes.get(symbol) else {
            return self.report(&it.place, format!("objc2 has no class `{symbol}`"));
        };
        if other.superclass != sdk.superclass {
            self.report(&it.place, format!("objc2 has `{symbol}` inherit from `{}`", other.superclass));
        }
        let main = |flags: &[String]| flags.iter().any(|flag| flag == "main-thread");
        self.isolation(it, symbol, main(&other.flags));
        self.adopts(it, symbol, it.inherits.get(1..).unwrap_or_default());
        self.open_initializer(it, symbol);
        self.use_row(it);
        self.saw("classes", symbol.to_owned(), Known::InBoth);
    }

    fn protocol(&mut self, it: &Declaration, symbol: &str) {
        self.named_as(it, symbol, Kind::Protocol);
        let Some(flags) = self.facts.objc2.protocols.get(symbol) else {
            return self.report(&it.place, format!("objc2 has no protocol `{symbol}`"));
        };
        self.isolation(it, symbol, flags.iter().any(|flag| flag == "main-thread"));
        if it.inherits != ["NSObjectProtocol"] {
            self.report(&it.place, format!("`{symbol}` inherits from NSObjectProtocol and nothing else"));
        }
        self.use_row(it);
        self.saw("protocols", symbol.to_owned(), Known::InBoth);
    }

    fn enumeration(&mut self, it: &Declaration, symbol: &str, version: &str) {
        let facts = self.facts;
        let sdk = &facts.pyobjc.enums[symbol];
        let raw = if sdk.kind == "Q" { "UInt" } else { "Int" };
        let type_row =
            facts.rows.iter().find(|row| row.symbol.as_deref() == Some(symbol)).or_else(|| facts.row(it));
        self.version(it, version, symbol, type_row.and_then(|row| row.introduced));
        if !it.kind.is_type() {
            let name =
                if it.kind == Kind::Function && it.name == "==" { it.name.clone() } else { it.full_name() };
            if !SYNTHESIZED_BY_IMPORTER.contains(&name.as_str()) {
                return self
                    .report(&it.place, format!("Swift does not synthesize `{}` for `{symbol}`", shown(it)));
            }
            let value = it.gives.as_ref().or_else(|| it.parameters.first().map(|it| &it.kind));
            if name.contains("rawValue") && value != Some(&SwiftType::named(raw)) {
                self.report(&it.place, format!("`{symbol}` has the raw type `{raw}`"));
            }
            return;
        }
        let Some(row) = facts.row(it) else {
            return self.report(&it.place, format!("facts/by-hand.tsv has no line for the enum `{symbol}`"));
        };
        self.rows_used.insert(row.line);
        if row.symbol.as_deref().unwrap_or(&it.name) != symbol {
            self.report(&it.place, format!("`{}` is not `{symbol}` in Swift", it.path()));
        }
        if row.declaration.kind != it.kind || row.declaration.inherits.first() != it.inherits.first() {
            self.report(&it.place, format!("`{symbol}` is documented as `{}`", described(&row.declaration)));
        }
        if it.kind == Kind::Enum && it.inherits.first().map(String::as_str) != Some(raw) {
            self.report(&it.place, format!("`{symbol}` has the raw type `{raw}`"));
        }
        self.adopts_values(it, it.inherits.get(1..).unwrap_or_default());
        if facts.objc2.enums.contains_key(symbol) {
            self.saw("enums", symbol.to_owned(), Known::InBoth);
        } else {
            self.report(&it.place, format!("objc2 has no enum `{symbol}`"));
        }
    }

    /// An enum's case or an option: `Enum Case=value`.
    pub(super) fn case(&mut self, it: &Declaration, owner: &str, case: &str, version: &str) {
        let facts = self.facts;
        let (case, value) = case.split_once('=').unwrap_or((case, ""));
        let Some(sdk) = facts.pyobjc.enums.get(owner) else {
            return self.report(&it.place, format!("the SDK has no enum `{owner}`"));
        };
        let Some(known) = sdk.cases.get(case) else {
            return self.report(&it.place, format!("`{owner}` has no case `{case}`"));
        };
        let other = facts.objc2.enums.get(owner).and_then(|it| it.cases.get(case));
        if other != Some(known) {
            self.report(&it.place, format!("objc2 has `{case}` as {other:?}, PyObjC as {known}"));
        }
        if value.parse() != Ok(*known) {
            self.report(&it.place, format!("`{case}` is {known}, not {value}"));
        }
        if it.number != Some(*known) {
            let number = it.number.map_or("nothing".to_owned(), |number| number.to_string());
            self.report(&it.place, format!("`{case}` is {known}, and `{}` is {number}", shown(it)));
        }
        if facts.swift_type_name(owner) != it.owner {
            self.report(
                &it.place,
                format!("`{case}` belongs to `{}`, not `{}`", facts.swift_type_name(owner), it.owner),
            );
        }
        let rule = names::case(owner, case);
        self.swift_name(it, case, &rule);
        let row = facts.row(it);
        let since = row.and_then(|row| row.introduced).or_else(|| {
            let whole = facts.rows.iter().find(|row| {
                row.declaration.kind.is_type()
                    && (row.symbol.as_deref() == Some(owner) || row.declaration.path() == owner)
            });
            whole.and_then(|row| row.introduced)
        });
        self.version(it, version, case, since);
        self.use_row(it);
        self.saw("cases", case.to_owned(), Known::InBoth);
    }

    /// The Swift name: the importer's, or the one the table gives instead.
    pub(super) fn swift_name(&mut self, it: &Declaration, symbol: &str, rule: &str) {
        let given = self.facts.row(it).and_then(|row| Some((row.line, row.symbol.as_deref()?)));
        match given {
            None if it.full_name() == rule => {}
            None => {
                self.report(&it.place, format!("`{symbol}` is `{rule}` in Swift, not `{}`", it.full_name()))
            }
            Some((_, given)) if given != symbol => {
                self.report(&it.place, format!("`{}` is `{given}`, not `{symbol}`", shown(it)));
            }
            Some((line, _)) if it.full_name() == rule => {
                let place = crate::api::declaration::Place { file: "facts/by-hand.tsv".to_owned(), line };
                self.report(&place, format!("`{symbol}` is `{rule}` by the importer's rules; write `-`"));
            }
            Some(_) => {}
        }
    }

    fn named_as(&mut self, it: &Declaration, symbol: &str, kind: Kind) {
        if it.kind != kind {
            return self
                .report(&it.place, format!("`{symbol}` is a {kind}, `{}` is a {}", shown(it), it.kind));
        }
        let name = self.facts.swift_type_name(symbol);
        if it.path() != name {
            self.report(&it.place, format!("`{symbol}` is `{name}` in Swift, not `{}`", it.path()));
        }
    }

    /// `@MainActor` where the SDK confines to the main thread, and nowhere else.
    fn isolation(&mut self, it: &Declaration, symbol: &str, main: bool) {
        let mut inherited = false;
        let mut above = it.inherits.first();
        // Up the stand-ins' classes; the bound is for a circle, which would not compile.
        for _ in 0..20 {
            let Some(class) = above.and_then(|name| self.types.get(name)) else { break };
            inherited |= class.main_actor;
            above = class.inherits.first();
        }
        if main && !it.main_actor {
            self.report(&it.place, format!("`{symbol}` is confined to the main thread; it needs @MainActor"));
        }
        if !main && it.main_actor && !inherited {
            self.report(&it.place, format!("`{symbol}` is not confined to the main thread; no @MainActor"));
        }
    }

    /// A class may adopt only the SDK class's protocols: another one would let VZCore do what the SDK does not allow.
    fn adopts(&mut self, it: &Declaration, symbol: &str, protocols: &[String]) {
        let facts = self.facts;
        for protocol in protocols {
            let sendable = facts
                .objc2
                .classes
                .get(symbol)
                .is_some_and(|it| it.flags.iter().any(|flag| flag == "sendable"));
            let known = facts.pyobjc.classes.get(symbol).is_some_and(|it| it.protocols.contains(protocol));
            let allowed = known || (protocol == "Sendable" && sendable);
            if !allowed {
                self.report(&it.place, format!("`{symbol}` does not conform to `{protocol}` in the SDK"));
            }
        }
    }

    fn adopts_values(&mut self, it: &Declaration, protocols: &[String]) {
        for protocol in protocols {
            if !OF_VALUES.contains(&protocol.as_str()) {
                self.report(&it.place, format!("Swift gives `{}` no conformance to `{protocol}`", it.path()));
            }
        }
    }

    /// Conformances added by extensions.
    pub(super) fn conformance(&mut self, it: &Conformance) {
        let Some(&owner) = self.types.get(&it.owner) else { return };
        if self.access(owner) != Access::Public || it.inherits.is_empty() {
            return;
        }
        let mut stands = owner.clone();
        stands.place = it.place.clone();
        if owner.kind == Kind::Class {
            let symbol = owner.path();
            self.adopts(&stands, &symbol, &it.inherits);
        } else if owner.kind != Kind::Protocol {
            self.adopts_values(&stands, &it.inherits);
        }
    }

    /// Reports an `init()` that other modules can call although the SDK's class declares it unavailable.
    fn open_initializer(&mut self, it: &Declaration, symbol: &str) {
        let declares = self.facts.pyobjc.own(symbol, "init", false).is_some();
        let open = self.facts.rows.iter().find(|row| {
            let row = &row.declaration;
            row.kind == Kind::Initializer && row.parameters.is_empty() && row.owner == it.path()
        });
        if let Some(row) = open {
            self.rows_used.insert(row.line);
        } else if declares && self.inherits_init(it, 0) {
            self.report(
                &it.place,
                format!(
                    "`{symbol}()` can be called here, but not in the SDK: declare an internal initializer"
                ),
            );
        }
    }

    /// Whether the class inherits NSObject's `init()`: neither it nor a superclass declares an initializer.
    fn inherits_init(&self, it: &Declaration, depth: usize) -> bool {
        let own = |other: &&Declaration| {
            other.kind == Kind::Initializer && other.owner == it.path() && !other.in_extension
        };
        if self.declarations.iter().any(|other| own(&other)) || depth > 20 {
            return false;
        }
        match it.inherits.first().map(String::as_str) {
            Some("NSObject") => true,
            Some(above) => self.types.get(above).is_some_and(|above| {
                let public_init = self.declarations.iter().any(|other| {
                    own_init(other, &above.path())
                        && other.access == Access::Public
                        && other.parameters.is_empty()
                });
                public_init || self.inherits_init(above, depth + 1)
            }),
            None => false,
        }
    }

    pub(super) fn use_row(&mut self, it: &Declaration) {
        if let Some(row) = self.facts.row(it) {
            self.rows_used.insert(row.line);
        }
    }
}

fn own_init(it: &Declaration, owner: &str) -> bool {
    it.kind == Kind::Initializer && it.owner == owner
}

fn described(it: &Declaration) -> String {
    match it.inherits.first() {
        Some(first) => format!("{} {}: {first}", it.kind, it.path()),
        None => format!("{} {}", it.kind, it.path()),
    }
}
