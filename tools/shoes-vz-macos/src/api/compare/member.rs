//! Methods, initializers and properties: annotations with a selector.

use crate::api::compare::comparison::{Comparison, Known, agrees, alternatives, kind_word, shown};
use crate::api::declaration::{Declaration, Finding, Kind};
use crate::api::facts::{Method, Version};
use crate::api::swift_type::SwiftType;
use crate::api::{names, types};

impl Comparison<'_> {
    /// `Class selector`, `Class +selector`.
    pub(super) fn member(&mut self, it: &Declaration, owner: &str, member: &str, version: &str) {
        let facts = self.facts;
        let (on_class, selector) = match member.strip_prefix('+') {
            Some(selector) => (true, selector),
            None => (false, member.strip_prefix('-').unwrap_or(member)),
        };
        if !facts.pyobjc.classes.contains_key(owner) && !facts.pyobjc.protocols.contains_key(owner) {
            return self.report(&it.place, format!("the SDK has no class or protocol `{owner}`"));
        }
        if facts.swift_type_name(owner) != it.owner {
            return self.report(&it.place, format!("`{}` is named as a member of `{owner}`", shown(it)));
        }
        let Some(method) = facts.pyobjc.method(owner, selector, on_class) else {
            return self.missing(it, owner, selector, on_class);
        };
        if on_class != it.on_type {
            let (sdk, here) =
                if on_class { ("the class'", "its instances'") } else { ("its instances'", "the class'") };
            self.report(
                &it.place,
                format!("`{selector}` is {sdk} {}, `{}` is {here}", kind_word(it), shown(it)),
            );
        }
        if method.owner != owner && !it.overrides {
            self.report(&it.place, format!("`{selector}` is declared by `{}`, not `{owner}`", method.owner));
        }
        self.version(it, version, selector, Some(method.introduced.unwrap_or(Version(10, 0))));
        self.swift_name(it, selector, &names::member(method));
        self.documented(it);
        let other = self.other_source(it, method, owner);
        self.signature(it, method, other.as_ref());
        self.extras(it, method);
        let known = if other.is_some() { Known::InBoth } else { Known::InOne };
        let kind = if owner == method.owner && facts.pyobjc.protocols.contains_key(owner) {
            "delegate selectors"
        } else {
            "selectors"
        };
        self.saw(kind, format!("{owner} {member}"), known);
    }

    fn missing(&mut self, it: &Declaration, owner: &str, selector: &str, on_class: bool) {
        if self.facts.pyobjc.method(owner, selector, !on_class).is_some() {
            let kinds =
                if on_class { "an instance method, not a class" } else { "a class method, not an instance" };
            return self.report(&it.place, format!("`{selector}` of `{owner}` is {kinds} method"));
        }
        let owners = self.facts.pyobjc.owners(selector);
        let elsewhere = match owners.as_slice() {
            [] => String::new(),
            owners => format!("; `{}` has", owners[..owners.len().min(3)].join("`, `")),
        };
        self.report(&it.place, format!("`{owner}` has no selector `{selector}` in the SDK{elsewhere}"));
    }

    /// The same method in objc2, which must have it too, unless it is a listed gap.
    fn other_source(&mut self, it: &Declaration, method: &Method, owner: &str) -> Option<Method> {
        let gap = (method.owner.clone(), method.selector.clone());
        let listed = self.facts.gaps.iter().any(|(_, listed)| *listed == gap);
        let other = self.facts.objc2.method(owner, &method.selector, method.on_class).cloned();
        match (&other, listed) {
            (None, true) => {
                self.gaps_used.insert(gap);
            }
            (None, false) => {
                let message =
                    format!("objc2 has no `{}` of `{owner}`, and by-hand.tsv lists no gap", method.selector);
                self.report(&it.place, message);
            }
            (Some(_), true) => {
                self.report(&it.place, format!("objc2 does have `{}`; it is not a gap", method.selector))
            }
            (Some(_), false) => {}
        }
        other
    }

    /// Parameters, result, nil and `throws`.
    fn signature(&mut self, it: &Declaration, method: &Method, other: Option<&Method>) {
        let resolved = self.resolved(it);
        let mut arguments = method.arguments.as_slice();
        let throws = arguments.last().is_some_and(|kind| names::is_error_out(kind));
        if throws {
            arguments = &arguments[..arguments.len() - 1];
        }
        if it.throws != throws {
            let does = if throws { "throws" } else { "does not throw" };
            self.report(&it.place, format!("`{}` {does} in Swift", method.selector));
        }
        if it.is_async {
            self.report(
                &it.place,
                "`async` forms are not compared; declare the form with a completion handler",
            );
        }
        if resolved.parameters.len() != arguments.len() {
            let message = format!(
                "`{}` takes {} arguments, `{}` takes {}",
                method.selector,
                arguments.len(),
                shown(it),
                it.parameters.len()
            );
            return self.report(&it.place, message);
        }
        let other_arguments = other.map(|other| other.arguments.as_slice());
        if other_arguments.is_some_and(|other| other.len() != arguments.len()) {
            self.report(&it.place, format!("objc2 has `{}` with other arguments", method.selector));
        }
        for (index, (parameter, objc)) in resolved.parameters.iter().zip(arguments).enumerate() {
            let nullable =
                other_arguments.and_then(|other| other.get(index)).map(|it| types::is_nullable_in_rust(it));
            let what = format!("argument {} of `{}`", index + 1, method.selector);
            self.same_type(it, &what, objc, &parameter.kind, nullable);
            self.default(it, objc, parameter.default.as_deref());
        }
        self.result(it, &resolved, method, other, throws);
    }

    fn result(
        &mut self,
        it: &Declaration,
        resolved: &Declaration,
        method: &Method,
        other: Option<&Method>,
        throws: bool,
    ) {
        let nullable = other.map(|other| types::is_nullable_in_rust(&other.result));
        if it.kind == Kind::Initializer {
            if nullable.is_some_and(|nullable| nullable != it.failable) {
                let may = if it.failable { "cannot" } else { "can" };
                self.report(
                    &it.place,
                    format!("`{}` {may} fail: `init{}`", method.selector, if it.failable { "" } else { "?" }),
                );
            }
            return;
        }
        let Some(gives) = &resolved.gives else {
            return self.report(
                &it.place,
                format!("write the type of `{}`: it cannot be inferred from its value", shown(it)),
            );
        };
        let what = format!("the result of `{}`", method.selector);
        if throws && method.result == "BOOL" {
            if *gives != SwiftType::named("Void") {
                self.report(&it.place, format!("{what} is Void in Swift"));
            }
            return;
        }
        self.same_type(it, &what, &method.result, gives, if throws { Some(false) } else { nullable });
    }

    fn same_type(
        &mut self,
        it: &Declaration,
        what: &str,
        objc: &str,
        swift: &SwiftType,
        nullable: Option<bool>,
    ) {
        let mut may = types::of_objc(self.facts, objc);
        if objc == "instancetype" {
            may = vec![SwiftType::named(&it.owner)];
        }
        if may.is_empty() {
            return self
                .report(&it.place, format!("{what} is `{objc}`, which api/types.rs does not know; add it"));
        }
        if !agrees(swift, &may) {
            return self
                .report(&it.place, format!("{what} is `{objc}`: {}, not `{swift}`", alternatives(&may)));
        }
        match nullable {
            Some(true) if !swift.is_optional() => {
                self.report(&it.place, format!("{what} can be nil: `{swift}?`"))
            }
            Some(false) if swift.is_optional() => {
                self.report(&it.place, format!("{what} is never nil: `{}`", swift.without_optional()));
            }
            _ => {}
        }
    }

    /// Swift imports option parameters with the default `[]`, and others without a default.
    fn default(&mut self, it: &Declaration, objc: &str, default: Option<&str>) {
        let options = self.facts.pyobjc.enums.contains_key(objc) && objc.contains("Options");
        match default {
            Some("[]") if options => {}
            Some(default) => {
                self.report(&it.place, format!("`{objc}` has no default `{default}` in Swift"));
            }
            None => {}
        }
    }

    /// Checks whether it can be set, is required or deprecated.
    fn extras(&mut self, it: &Declaration, method: &Method) {
        if it.kind == Kind::Property && method.is("property") && !it.required {
            let settable = !method.is("readonly");
            if settable && !it.settable {
                self.report(&it.place, format!("`{}` can be set in the SDK", shown(it)));
            }
            if !settable && it.settable {
                self.report(&it.place, format!("`{}` cannot be set in the SDK", shown(it)));
            }
        }
        if it.in_extension && method.is("required") {
            self.report(
                &it.place,
                format!("`{}` is required in the SDK; it can have no default", method.selector),
            );
        }
        // 100000 is "to be deprecated in a future version".
        if let Some(since) = method.deprecated().filter(|since| !since.starts_with("100000")) {
            let message = format!("`{}` is deprecated since macOS {since}", method.selector);
            self.outcome.warnings.push(Finding { place: it.place.clone(), message });
        }
    }
}
