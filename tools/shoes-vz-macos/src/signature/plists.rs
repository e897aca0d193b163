//! XML property lists with bounds, so that none, however deeply nested, can exhaust the stack.

use plist::{Dictionary, Value};

/// More than a hundred times what CodeResources has for a bundle of ten files.
const MAX_BYTES: usize = 1 << 20;
const MAX_DEPTH: usize = 32;

/// The dictionary that an XML property list holds.
///
/// # Errors
/// The reason, as the rest of a sentence that starts with the file's name.
pub(super) fn dictionary(bytes: &[u8]) -> Result<Dictionary, String> {
    if bytes.len() > MAX_BYTES {
        return Err(format!("{} bytes are too many for this property list", bytes.len()));
    }
    if depth(bytes) > MAX_DEPTH {
        return Err(format!("it nests more than {MAX_DEPTH} deep"));
    }
    match Value::from_reader_xml(bytes) {
        Ok(Value::Dictionary(dictionary)) => Ok(dictionary),
        Ok(_) => Err("it holds no dictionary".into()),
        Err(e) => Err(format!("it is not an XML property list ({e})")),
    }
}

/// At least as deep as what a parser would build.
fn depth(xml: &[u8]) -> usize {
    let mut depth = 0usize;
    let mut deepest = 0;
    for at in (0..xml.len()).filter(|&at| xml[at] == b'<') {
        let tag = &xml[at + 1..];
        if tag.starts_with(b"dict") || tag.starts_with(b"array") {
            depth += 1;
            deepest = deepest.max(depth);
        } else if tag.starts_with(b"/dict") || tag.starts_with(b"/array") {
            depth = depth.saturating_sub(1);
        }
    }
    deepest
}

/// The kind of a property list's value, with its article.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "an array",
        Value::Dictionary(_) => "a dictionary",
        Value::Boolean(_) => "a boolean",
        Value::Data(_) => "data",
        Value::Date(_) => "a date",
        Value::Real(_) => "a real",
        Value::Integer(_) => "an integer",
        Value::String(_) => "a string",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plist(inside: &str) -> String {
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<plist version=\"1.0\">{inside}</plist>")
    }

    #[test]
    fn a_dictionary_is_read_and_anything_else_is_refused_with_a_reason() {
        let good = dictionary(plist("<dict><key>a</key><integer>1</integer></dict>").as_bytes()).unwrap();
        assert_eq!(good.get("a").and_then(Value::as_signed_integer), Some(1));
        assert!(dictionary(plist("<array/>").as_bytes()).unwrap_err().contains("no dictionary"));
        assert!(dictionary(b"bplist00").unwrap_err().contains("not an XML"));
        assert!(dictionary(&vec![b' '; MAX_BYTES + 1]).unwrap_err().contains("too many"));
    }

    #[test]
    fn a_hundred_thousand_nested_arrays_are_refused_not_followed() {
        let deep = plist(&("<array>".repeat(60_000) + &"</array>".repeat(60_000)));
        assert!(dictionary(deep.as_bytes()).unwrap_err().contains("deep"));
    }
}
