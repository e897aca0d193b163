//! Compares `proto/` with the last release, which is recorded in `proto/released.txt`: everything that a released program
//! sends or expects must stay. `make proto-generate` runs this, and `make proto-release` rewrites the file at a release.
//!
//! The file is the compiled descriptor set as text, one fact a line (a message, a field with its number, type and label, an
//! enum's value, a method with its types), so that a change shows in a diff. A fact may be added; a missing one fails.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs};

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use shoes_vz_proto::FILE_DESCRIPTOR_SET;

const RELEASED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/released.txt");
/// Set by `make proto-release`.
const WRITE: &str = "SHOESVZ_PROTO_RELEASE";
const HEADER: &str = "\
# What the protos of the last release promise: see rust/shoes-vz-proto/tests/released.rs. Not edited by hand:
# `make proto-release` writes it, as a step of a release.
";

type Facts = BTreeSet<String>;

fn now() -> FileDescriptorSet {
    FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap()
}

fn facts(set: &FileDescriptorSet) -> Facts {
    let mut facts = Facts::new();
    for file in &set.file {
        let package = format!(".{}", file.package());
        // Google's own types are not ours to change.
        if package.starts_with(".google.") {
            continue;
        }
        file.message_type.iter().for_each(|message| of_message(message, &package, &mut facts));
        file.enum_type.iter().for_each(|it| of_enum(it, &package, &mut facts));
        for service in &file.service {
            let name = format!("{package}.{}", service.name());
            facts.insert(format!("service {name}"));
            for method in &service.method {
                let stream = |streams: bool| if streams { "stream " } else { "" };
                facts.insert(format!(
                    "method {name}/{} ({}{}) returns ({}{})",
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type(),
                ));
            }
        }
    }
    facts
}

fn of_message(message: &DescriptorProto, scope: &str, facts: &mut Facts) {
    let name = format!("{scope}.{}", message.name());
    facts.insert(format!("message {name}"));
    for field in &message.field {
        facts.insert(of_field(field, message, &name));
    }
    for range in &message.reserved_range {
        facts.insert(format!("reserved {name} {}..{}", range.start(), range.end()));
    }
    message.nested_type.iter().for_each(|nested| of_message(nested, &name, facts));
    message.enum_type.iter().for_each(|nested| of_enum(nested, &name, facts));
}

fn of_field(field: &FieldDescriptorProto, message: &DescriptorProto, name: &str) -> String {
    let label = match field.label() {
        Label::Repeated => "repeated ",
        Label::Required => "required ",
        Label::Optional if field.proto3_optional() => "optional ",
        Label::Optional => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().to_owned(),
        plain => plain.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let oneof = field.oneof_index.filter(|_| !field.proto3_optional());
    let oneof = oneof.and_then(|index| message.oneof_decl.get(usize::try_from(index).ok()?));
    let oneof = oneof.map(|oneof| format!(" oneof {}", oneof.name())).unwrap_or_default();
    format!("field {name}.{} = {} {label}{kind}{oneof}", field.name(), field.number())
}

fn of_enum(it: &EnumDescriptorProto, scope: &str, facts: &mut Facts) {
    let name = format!("{scope}.{}", it.name());
    facts.insert(format!("enum {name}"));
    for value in &it.value {
        facts.insert(format!("value {name}.{} = {}", value.name(), value.number()));
    }
}

fn released() -> Facts {
    let text = fs::read_to_string(RELEASED).unwrap();
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(str::to_owned).collect()
}

/// The facts of the last release that no longer hold.
fn broken(now: &FileDescriptorSet) -> Vec<String> {
    released().difference(&facts(now)).cloned().collect()
}

#[test]
fn what_the_last_release_promised_on_the_wire_still_holds() {
    let broken = broken(&now());
    assert!(
        broken.is_empty(),
        "these facts of the last release (proto/released.txt) no longer hold in proto/; released programs rely on \
         them, so keep them and add new fields beside them:\n  {}",
        broken.join("\n  ")
    );
    let added: Vec<_> = facts(&now()).difference(&released()).cloned().collect();
    println!("proto/ keeps all {} facts of the last release, and adds {}", released().len(), added.len());
    if std::env::var_os(WRITE).is_some() {
        let lines: Vec<_> = facts(&now()).into_iter().collect();
        fs::write(RELEASED, format!("{HEADER}{}\n", lines.join("\n"))).unwrap();
        println!("proto/released.txt is written:\n  {}", added.join("\n  "));
    }
}

/// The current protos with a change to one field of one message.
fn with_field(
    message: &str,
    field: &str,
    change: impl FnOnce(&mut FieldDescriptorProto),
) -> FileDescriptorSet {
    let mut set = now();
    let fields = set.file.iter_mut().flat_map(|f| &mut f.message_type).find(|m| m.name() == message).unwrap();
    change(fields.field.iter_mut().find(|f| f.name() == field).unwrap());
    set
}

#[test]
fn a_field_that_gets_another_number_type_label_or_name_fails_the_check() {
    type Change = fn(&mut FieldDescriptorProto);
    let changes: [Change; 4] = [
        |field| field.number = Some(1000),
        |field| field.r#type = Some(Type::Bytes.into()),
        |field| field.label = Some(Label::Repeated.into()),
        |field| field.name = Some("another".into()),
    ];
    for change in changes {
        let broken = broken(&with_field("AddInstanceResponse", "cloud_id", change));
        assert_eq!(broken.len(), 1, "{broken:?}");
        assert!(broken[0].contains("AddInstanceResponse.cloud_id = 1 string"), "{broken:?}");
    }
}

#[test]
fn what_vanishes_fails_the_check_and_what_is_added_does_not() {
    let vanish = |change: &dyn Fn(&mut FileDescriptorSet)| {
        let mut set = now();
        change(&mut set);
        broken(&set)
    };
    fn find<'a, T>(all: impl Iterator<Item = &'a mut Vec<T>>) -> &'a mut Vec<T> {
        all.into_iter().find(|all| !all.is_empty()).unwrap()
    }
    type Change = dyn Fn(&mut FileDescriptorSet);
    let changes: [(&str, &Change); 5] = [
        ("message ", &|set| drop(find(set.file.iter_mut().map(|f| &mut f.message_type)).remove(0))),
        ("field ", &|set| {
            drop(find(set.file.iter_mut().flat_map(|f| &mut f.message_type).map(|m| &mut m.field)).remove(0))
        }),
        ("value ", &|set| {
            drop(find(set.file.iter_mut().flat_map(|f| &mut f.enum_type).map(|e| &mut e.value)).remove(0))
        }),
        ("service ", &|set| drop(find(set.file.iter_mut().map(|f| &mut f.service)).remove(0))),
        ("method ", &|set| {
            drop(find(set.file.iter_mut().flat_map(|f| &mut f.service).map(|s| &mut s.method)).remove(0))
        }),
    ];
    for (what, change) in changes {
        let broken = vanish(change);
        assert!(broken.iter().any(|fact| fact.starts_with(what)), "{what}: {broken:?}");
    }
    let added = vanish(&|set| {
        let message = set.file.iter_mut().flat_map(|f| &mut f.message_type).next().unwrap();
        let field = FieldDescriptorProto {
            name: Some("added".into()),
            number: Some(999),
            r#type: Some(Type::String.into()),
            ..FieldDescriptorProto::default()
        };
        message.field.push(field);
    });
    assert_eq!(added, Vec::<String>::new());
}
