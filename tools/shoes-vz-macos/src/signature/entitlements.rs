//! Entitlements: as XML, and as DER, which macOS 12 and later reads.
//!
//! DER, as CoreEntitlements has it:
//! ```text
//! [APPLICATION 16] { INTEGER 1, dictionary }
//! dictionary = [CONTEXT 16] { SEQUENCE { UTF8String key, value }… }     keys in the order of their bytes
//! value      = BOOLEAN | INTEGER | UTF8String | OCTET STRING | SEQUENCE { value… } | dictionary
//! ```

use der::{Decode as _, Reader as _, SliceReader, Tag, TagNumber, Tagged as _, asn1::AnyRef};
use plist::{Dictionary, Value};

use super::plists;

const MAX_DEPTH: usize = 16;
const DICTIONARY: Tag = Tag::ContextSpecific { constructed: true, number: TagNumber(16) };
const WHOLE: Tag = Tag::Application { constructed: true, number: TagNumber(16) };

/// Decodes the DER form.
///
/// # Errors
/// The reason, as the rest of a sentence that starts with "its DER entitlements".
pub(super) fn from_der(bytes: &[u8]) -> Result<Dictionary, String> {
    let whole = AnyRef::from_der(bytes).map_err(not_der)?;
    if whole.tag() != WHOLE {
        return Err(format!("begin with {}, not with [APPLICATION 16]", whole.tag()));
    }
    let mut inside = SliceReader::new(whole.value()).map_err(not_der)?;
    let version = i64::decode(&mut inside).map_err(not_der)?;
    if version != 1 {
        return Err(format!("are of version {version}, not 1"));
    }
    let dictionary = AnyRef::decode(&mut inside).map_err(not_der)?;
    inside.finish().map_err(not_der)?;
    match value(dictionary, 0)? {
        Value::Dictionary(dictionary) => Ok(dictionary),
        other => Err(format!("hold {}, not a dictionary", plists::kind(&other))),
    }
}

fn value(any: AnyRef<'_>, depth: usize) -> Result<Value, String> {
    if depth > MAX_DEPTH {
        return Err(format!("nest more than {MAX_DEPTH} deep"));
    }
    match any.tag() {
        Tag::Boolean => any.decode_as::<bool>().map(Value::Boolean).map_err(not_der),
        Tag::Integer => any.decode_as::<i64>().map(|i| Value::Integer(i.into())).map_err(not_der),
        Tag::OctetString => Ok(Value::Data(any.value().to_vec())),
        Tag::Utf8String => utf8(any).map(Value::String),
        Tag::Sequence => {
            let mut reader = SliceReader::new(any.value()).map_err(not_der)?;
            let mut array = Vec::new();
            while !reader.is_finished() {
                array.push(value(AnyRef::decode(&mut reader).map_err(not_der)?, depth + 1)?);
            }
            Ok(Value::Array(array))
        }
        DICTIONARY => pairs(any.value(), depth).map(Value::Dictionary),
        other => Err(format!("hold a {other}, which no entitlement is")),
    }
}

fn pairs(bytes: &[u8], depth: usize) -> Result<Dictionary, String> {
    let mut reader = SliceReader::new(bytes).map_err(not_der)?;
    let mut dictionary = Dictionary::new();
    let mut last: Option<String> = None;
    while !reader.is_finished() {
        let pair = AnyRef::decode(&mut reader).map_err(not_der)?;
        if pair.tag() != Tag::Sequence {
            return Err(format!("have a {} where key and value belong", pair.tag()));
        }
        let mut pair = SliceReader::new(pair.value()).map_err(not_der)?;
        let key = utf8(AnyRef::decode(&mut pair).map_err(not_der)?)?;
        let content = value(AnyRef::decode(&mut pair).map_err(not_der)?, depth + 1)?;
        pair.finish().map_err(not_der)?;
        if last.as_ref().is_some_and(|last| *last >= key) {
            return Err(format!("have {key:?} out of order or twice, which macOS refuses"));
        }
        dictionary.insert(key.clone(), content);
        last = Some(key);
    }
    Ok(dictionary)
}

fn utf8(any: AnyRef<'_>) -> Result<String, String> {
    if any.tag() != Tag::Utf8String {
        return Err(format!("have a {} where a text belongs", any.tag()));
    }
    String::from_utf8(any.value().to_vec()).map_err(|_| "have a text that is not UTF-8".into())
}

fn not_der(e: der::Error) -> String {
    format!("are not DER ({e})")
}

/// The differences of `have` from `wanted`, a phrase for each key; empty if they are equal.
pub(super) fn differences(have: &Dictionary, wanted: &Dictionary) -> Vec<String> {
    let missing = wanted.iter().filter_map(|(key, value)| match have.get(key) {
        None => Some(format!("{key} is missing")),
        Some(other) if other != value => Some(format!("{key} is {}, not {}", shown(other), shown(value))),
        Some(_) => None,
    });
    let more =
        have.keys().filter(|key| !wanted.contains_key(key)).map(|key| format!("{key} is not expected"));
    missing.chain(more).collect()
}

pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Boolean(yes) => yes.to_string(),
        Value::Integer(number) => number.to_string(),
        Value::String(text) => format!("{text:?}"),
        Value::Array(values) => format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(", ")),
        other => plists::kind(other).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tag, length (short form), content.
    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
    }

    fn pair(key: &str, value: Vec<u8>) -> Vec<u8> {
        tlv(0x30, &[tlv(0x0c, key.as_bytes()), value].concat())
    }

    fn whole(pairs: &[Vec<u8>]) -> Vec<u8> {
        tlv(0x70, &[tlv(0x02, &[1]), tlv(0xb0, &pairs.concat())].concat())
    }

    #[test]
    fn every_kind_of_value_is_decoded() {
        let inner = tlv(0xb0, &pair("k", tlv(0x02, &[0xff])));
        let der = whole(&[
            pair("a", tlv(0x01, &[0xff])),
            pair("b", tlv(0x02, &[0x01, 0x00])),
            pair("c", tlv(0x0c, b"text")),
            pair("d", tlv(0x30, &[tlv(0x0c, b"x"), tlv(0x01, &[0])].concat())),
            pair("e", inner),
        ]);
        let have = from_der(&der).unwrap();
        let wanted = plists::dictionary(
            b"<?xml version=\"1.0\"?><plist version=\"1.0\"><dict>
              <key>a</key><true/><key>b</key><integer>256</integer><key>c</key><string>text</string>
              <key>d</key><array><string>x</string><false/></array>
              <key>e</key><dict><key>k</key><integer>-1</integer></dict></dict></plist>",
        )
        .unwrap();
        assert_eq!(differences(&have, &wanted), Vec::<String>::new());
    }

    #[test]
    fn der_that_macos_would_refuse_is_refused_with_a_reason() {
        let yes = || tlv(0x01, &[0xff]);
        let deep = (0..20).fold(yes(), |inner, _| tlv(0x30, &inner));
        for (der, expected) in [
            (whole(&[pair("b", yes()), pair("a", yes())]), "out of order"),
            (whole(&[pair("a", yes()), pair("a", yes())]), "twice"),
            (whole(&[pair("a", tlv(0x01, &[1]))]), "not DER"),
            (whole(&[pair("a", tlv(0x09, &[1]))]), "which no entitlement is"),
            (whole(&[pair("a", deep)]), "deep"),
            (whole(&[tlv(0x0c, b"a")]), "where key and value belong"),
            (tlv(0x30, &[]), "APPLICATION 16"),
            (tlv(0x70, &[tlv(0x02, &[2]), tlv(0xb0, &[])].concat()), "version 2"),
            (tlv(0x70, &[tlv(0x02, &[1]), tlv(0x0c, b"x")].concat()), "not a dictionary"),
            ([whole(&[]), vec![0]].concat(), "not DER"),
        ] {
            let error = from_der(&der).unwrap_err();
            assert!(error.contains(expected), "{error} / {expected}");
        }
    }

    #[test]
    fn differences_name_the_key_and_both_values() {
        let of = |text: &str| {
            plists::dictionary(format!("<plist version=\"1.0\"><dict>{text}</dict></plist>").as_bytes())
                .unwrap()
        };
        let have = of("<key>a</key><false/><key>b</key><string>x</string>");
        let wanted = of("<key>a</key><true/><key>c</key><true/>");
        assert_eq!(
            differences(&have, &wanted),
            ["a is false, not true", "c is missing", "b is not expected"]
        );
    }
}
