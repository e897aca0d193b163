//! The tables of `facts/`: what other projects read from the SDK, and facts added by hand.

use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::api::declaration::Declaration;
use crate::api::parser;

/// The deployment target, in which every symbol must exist.
pub const NEWEST: Version = Version(26, 0);

/// Objective-C's root class, which is in no framework's table.
const ROOT: &str = "NSObject";

const PYOBJC: [(&str, &str); 2] = [
    ("pyobjc-virtualization.tsv", include_str!("../../facts/pyobjc-virtualization.tsv")),
    ("pyobjc-appkit.tsv", include_str!("../../facts/pyobjc-appkit.tsv")),
];
const OBJC2: [(&str, &str); 2] = [
    ("objc2-virtualization.tsv", include_str!("../../facts/objc2-virtualization.tsv")),
    ("objc2-appkit.tsv", include_str!("../../facts/objc2-appkit.tsv")),
];
const CRATES_C: (&str, &str) = ("crates-c.tsv", include_str!("../../facts/crates-c.tsv"));
const BY_HAND: (&str, &str) = ("by-hand.tsv", include_str!("../../facts/by-hand.tsv"));

/// A macOS version: major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16);

impl Version {
    /// `11.0`; a symbol without a version exists since the first macOS.
    pub fn parse(text: &str) -> Option<Version> {
        let (major, minor) = text.split_once('.')?;
        Some(Version(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// One source's description of a class.
#[derive(Debug, Clone)]
pub struct Class {
    pub superclass: String,
    /// The protocols it adopts itself (pyobjc).
    pub protocols: Vec<String>,
    /// `main-thread`, `sendable` (objc2).
    pub flags: Vec<String>,
}

/// One source's description of a method or a property's getter.
#[derive(Debug, Clone)]
pub struct Method {
    /// The class or protocol that declares it.
    pub owner: String,
    /// Whether it is the class's rather than its instances'.
    pub on_class: bool,
    pub selector: String,
    /// The first macOS version; none in objc2.
    pub introduced: Option<Version>,
    /// `property`, `readonly`, `optional`, `required`, `deprecated=…`.
    pub flags: Vec<String>,
    /// Its result: Objective-C in pyobjc, Rust in objc2.
    pub result: String,
    pub arguments: Vec<String>,
}

impl Method {
    pub fn is(&self, flag: &str) -> bool {
        self.flags.iter().any(|it| it == flag)
    }

    /// The macOS version that deprecates it.
    pub fn deprecated(&self) -> Option<&str> {
        self.flags.iter().find_map(|flag| flag.strip_prefix("deprecated="))
    }
}

/// One source's description of an enum.
#[derive(Debug, Clone, Default)]
pub struct Enum {
    /// Its encoding (pyobjc: `q`, `Q`) or type (objc2: `NSInteger`).
    pub kind: String,
    /// Its cases' values.
    pub cases: HashMap<String, i64>,
}

/// One source's tables of Objective-C.
#[derive(Debug, Default)]
pub struct ObjC {
    /// Classes by name.
    pub classes: HashMap<String, Class>,
    /// Protocols by name, with their flags.
    pub protocols: HashMap<String, Vec<String>>,
    /// Enums by name.
    pub enums: HashMap<String, Enum>,
    /// Constants by name, with their first macOS version.
    pub constants: HashMap<String, Option<Version>>,
    methods: HashMap<(String, String, bool), Method>,
    /// The oldest member's macOS version, by owner.
    since: HashMap<String, Version>,
}

impl ObjC {
    /// The method the class or protocol declares itself.
    pub fn own(&self, owner: &str, selector: &str, on_class: bool) -> Option<&Method> {
        self.methods.get(&(owner.to_owned(), selector.to_owned(), on_class))
    }

    /// The method, of the class or of one it inherits from.
    pub fn method(&self, owner: &str, selector: &str, on_class: bool) -> Option<&Method> {
        let mut owner = owner;
        // The bound is for a table with a circle.
        for _ in 0..20 {
            if let Some(method) = self.own(owner, selector, on_class) {
                return Some(method);
            }
            owner = &self.classes.get(owner)?.superclass;
        }
        None
    }

    /// The classes and protocols that have the selector, for messages.
    pub fn owners(&self, selector: &str) -> Vec<&str> {
        let mut owners: Vec<_> =
            self.methods.values().filter(|it| it.selector == selector).map(|it| it.owner.as_str()).collect();
        owners.sort_unstable();
        owners
    }

    /// The first macOS version of a class or protocol: its oldest member's. None without members.
    pub fn introduced(&self, owner: &str) -> Option<Version> {
        self.since.get(owner).copied()
    }

    fn read(&mut self, name: &str, text: &str, dated: bool) -> Result<(), FactsError> {
        for (line, fields) in rows(text) {
            let malformed = || FactsError { table: name.to_owned(), line };
            match fields.as_slice() {
                ["class", class, superclass, rest] => {
                    let items = items(rest);
                    let (protocols, flags) = if dated { (items, Vec::new()) } else { (Vec::new(), items) };
                    self.classes.insert(
                        (*class).to_owned(),
                        Class { superclass: (*superclass).to_owned(), protocols, flags },
                    );
                }
                ["protocol", protocol, _] => {
                    self.protocols.insert((*protocol).to_owned(), Vec::new());
                }
                ["protocol", protocol, _, flags] => {
                    self.protocols.insert((*protocol).to_owned(), items(flags));
                }
                ["method", owner, sign, selector, rest @ ..] => {
                    let (introduced, rest) = if dated {
                        let (introduced, rest) = rest.split_first().ok_or_else(malformed)?;
                        (Version::parse(introduced), rest)
                    } else {
                        (None, rest)
                    };
                    let [flags, result, arguments @ ..] = rest else { return Err(malformed()) };
                    let method = Method {
                        owner: (*owner).to_owned(),
                        on_class: *sign == "+",
                        selector: (*selector).to_owned(),
                        introduced,
                        flags: items(flags),
                        result: (*result).to_owned(),
                        arguments: arguments.iter().map(|it| (*it).to_owned()).collect(),
                    };
                    let since = introduced.unwrap_or(Version(10, 0));
                    let known = self.since.entry(method.owner.clone()).or_insert(since);
                    *known = since.min(*known);
                    let key = (method.owner.clone(), method.selector.clone(), method.on_class);
                    self.methods.insert(key, method);
                }
                ["enum", name, kind] => {
                    self.enums.entry((*name).to_owned()).or_default().kind = (*kind).to_owned()
                }
                ["case", owner, name, value] => {
                    // Values beyond an i64 are masks, which are not compared by number.
                    let value = value.parse().unwrap_or(i64::MAX);
                    self.enums
                        .entry((*owner).to_owned())
                        .or_default()
                        .cases
                        .insert((*name).to_owned(), value);
                }
                ["extern", name, introduced, _] => {
                    self.constants.insert((*name).to_owned(), Version::parse(introduced));
                }
                _ => return Err(malformed()),
            }
        }
        Ok(())
    }
}

/// The crates' tables of C.
#[derive(Debug, Default)]
pub struct C {
    /// Functions by name: result, then arguments, in Rust.
    pub functions: HashMap<String, Vec<String>>,
    /// Enum cases by name: their enum and value.
    pub cases: HashMap<String, (String, i64)>,
    /// Constants and fields (`stat.st_size`) of macOS' C library.
    others: HashSet<String>,
}

impl C {
    /// Whether macOS' C library has the function, constant, structure or field. Swift's initializers of structures
    /// (`stat.init()`) go with these.
    pub fn has(&self, symbol: &str) -> bool {
        let name = symbol.split_once(".init(").map_or(symbol, |(structure, _)| structure);
        self.functions.contains_key(name) || self.others.contains(name)
    }
}

/// One line of `by-hand.tsv`: a Swift declaration, and facts about it that no package has.
#[derive(Debug)]
pub struct Row {
    pub line: usize,
    /// The declaration, as documented.
    pub declaration: Declaration,
    /// The Objective-C or C symbol, if the importer's rules do not give it.
    pub symbol: Option<String>,
    /// The first macOS version, if no package has it.
    pub introduced: Option<Version>,
}

#[derive(Debug)]
pub struct Facts {
    /// PyObjC's metadata.
    pub pyobjc: ObjC,
    /// The crates of objc2.
    pub objc2: ObjC,
    /// The crates vmnet and libc.
    pub c: C,
    /// Added by hand.
    pub rows: Vec<Row>,
    /// Members that objc2 leaves out: line in the table, owner and selector.
    pub gaps: Vec<(usize, (String, String))>,
    /// Rows by owner, name and whether it is the type's.
    index: HashMap<(String, String, bool), usize>,
    /// Swift's names of Objective-C types.
    types: HashMap<String, String>,
}

/// A table cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("facts/{table}:{line}: this line cannot be read")]
pub struct FactsError {
    /// The file.
    pub table: String,
    /// The line, from 1.
    pub line: usize,
}

impl Facts {
    /// The tables that are compiled into this program.
    ///
    /// # Errors
    /// A table has a line that cannot be read.
    pub fn built_in() -> Result<Facts, FactsError> {
        let mut pyobjc = ObjC::default();
        for (name, text) in PYOBJC {
            pyobjc.read(name, text, true)?;
        }
        let root = Method {
            owner: ROOT.to_owned(),
            on_class: false,
            selector: "init".to_owned(),
            introduced: None,
            flags: Vec::new(),
            result: "instancetype".to_owned(),
            arguments: Vec::new(),
        };
        let mut objc2 = ObjC::default();
        for (name, text) in OBJC2 {
            objc2.read(name, text, false)?;
        }
        for source in [&mut pyobjc, &mut objc2] {
            source.methods.insert((ROOT.to_owned(), "init".to_owned(), false), root.clone());
        }
        let mut facts = Facts {
            pyobjc,
            objc2,
            c: C::default(),
            rows: Vec::new(),
            gaps: Vec::new(),
            index: HashMap::new(),
            types: HashMap::new(),
        };
        facts.read_c(CRATES_C.0, CRATES_C.1)?;
        facts.read_by_hand(BY_HAND.0, BY_HAND.1)?;
        Ok(facts)
    }

    fn read_c(&mut self, table: &str, text: &str) -> Result<(), FactsError> {
        for (line, fields) in rows(text) {
            match fields.as_slice() {
                ["function", name, _, signature @ ..] => {
                    let signature = signature.iter().map(|it| (*it).to_owned()).collect();
                    self.c.functions.insert((*name).to_owned(), signature);
                }
                ["case", owner, name, value] => {
                    let value = value.parse().map_err(|_| FactsError { table: table.to_owned(), line })?;
                    self.c.cases.insert((*name).to_owned(), ((*owner).to_owned(), value));
                }
                ["constant", name, _] => {
                    self.c.others.insert((*name).to_owned());
                }
                ["field", structure, name, _] => {
                    self.c.others.insert((*structure).to_owned());
                    self.c.others.insert(format!("{structure}.{name}"));
                }
                _ => return Err(FactsError { table: table.to_owned(), line }),
            }
        }
        Ok(())
    }

    fn read_by_hand(&mut self, table: &str, text: &str) -> Result<(), FactsError> {
        for (line, fields) in rows(text) {
            let malformed = || FactsError { table: table.to_owned(), line };
            match fields.as_slice() {
                ["swift", owner, declaration, symbol, introduced] => {
                    let given = |field: &str| (field != "-").then(|| field.to_owned());
                    let introduced = match given(introduced) {
                        Some(text) => Some(Version::parse(&text).ok_or_else(malformed)?),
                        None => None,
                    };
                    // The table has no members of a type, but the parser needs their brackets.
                    let is_type = ["class ", "struct ", "enum ", "protocol "];
                    let bracketed = is_type.iter().any(|word| declaration.starts_with(word))
                        && !declaration.starts_with("class var ")
                        && !declaration.starts_with("class func ");
                    let text = format!("public {declaration}{}", if bracketed { " {}" } else { "" });
                    let source = parser::parse(table, &text);
                    let [declaration] = source.declarations.as_slice() else { return Err(malformed()) };
                    let mut declaration = declaration.clone();
                    declaration.owner = given(owner).unwrap_or_default();
                    declaration.place.line = line;
                    if let Some(symbol) = given(symbol).filter(|_| declaration.kind.is_type()) {
                        // Of two, the deeper one: VZErrorCode is VZError and VZError.Code; only the latter is a number.
                        let path = declaration.path();
                        let known = self.types.entry(symbol).or_default();
                        if known.is_empty() || path.matches('.').count() > known.matches('.').count() {
                            *known = path;
                        }
                    }
                    if self.index.insert(key(&declaration), self.rows.len()).is_some() {
                        return Err(malformed());
                    }
                    self.rows.push(Row { line, declaration, symbol: given(symbol), introduced });
                }
                ["gap", owner, selector] => {
                    self.gaps.push((line, ((*owner).to_owned(), (*selector).to_owned())))
                }
                _ => return Err(malformed()),
            }
        }
        Ok(())
    }

    /// The row for a declaration, by where it is and what it is called.
    pub fn row(&self, it: &Declaration) -> Option<&Row> {
        self.index.get(&key(it)).map(|at| &self.rows[*at])
    }

    /// The Swift name of an Objective-C type.
    pub fn swift_type_name<'a>(&'a self, symbol: &'a str) -> &'a str {
        self.types.get(symbol).map_or(symbol, String::as_str)
    }
}

fn key(it: &Declaration) -> (String, String, bool) {
    (it.owner.clone(), it.full_name(), it.on_type)
}

fn rows(text: &str) -> impl Iterator<Item = (usize, Vec<&str>)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(line, text)| (line, text.split('\t').collect()))
}

fn items(field: &str) -> Vec<String> {
    field.split(' ').filter(|word| *word != "-").map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(Version(10, 9) < Version(10, 15) && Version(26, 4) > NEWEST);
        assert_eq!(Version::parse("12.3"), Some(Version(12, 3)));
        for text in ["", "12", "12.x", "-", "12.3.1"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_tables_hold_what_the_sources_say_they_hold() {
        let facts = Facts::built_in().expect("facts");
        assert_eq!(
            facts.pyobjc.own("VZVirtualMachine", "queue", false).expect("queue").introduced,
            Some(Version(26, 0))
        );
        assert_eq!(facts.pyobjc.enums["VZErrorCode"].cases["VZErrorVirtualMachineLimitExceeded"], 6);
        assert_eq!(facts.objc2.enums["VZErrorCode"].cases["VZErrorVirtualMachineLimitExceeded"], 6);
        assert_eq!(facts.pyobjc.classes["VZVirtualMachineView"].superclass, "NSView");
        assert_eq!(facts.objc2.classes.len(), facts.pyobjc.classes.len());
        assert_eq!(facts.c.cases["VMNET_SHARED_MODE"], ("operating_modes_t".into(), 1001));
    }

    #[test]
    fn a_selector_is_found_in_the_class_it_is_inherited_from() {
        let facts = Facts::built_in().expect("facts");
        assert_eq!(
            facts.pyobjc.method("VZVirtualMachineView", "frame", false).expect("frame").owner,
            "NSView"
        );
        assert!(facts.pyobjc.method("VZVirtualMachineView", "frame", true).is_none());
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named() {
        let mut objc = ObjC::default();
        assert_eq!(
            objc.read("t.tsv", "# c\nclass\tA", true),
            Err(FactsError { table: "t.tsv".into(), line: 2 })
        );
        assert!(objc.read("t.tsv", "method\tA\t-\tb\t11.0", true).is_err());
    }
}
