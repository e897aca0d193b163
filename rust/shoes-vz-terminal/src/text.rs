//! Text from other sources: names, reasons, logs of guests. Printed unchanged, it could move the cursor, recolour the
//! terminal, set its title, make it send input, or show characters in another order.

/// One line: whole escape sequences and other control characters are removed; line breaks and tabs become spaces.
pub fn line(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(plain).collect();
    lines.join(" ")
}

/// As [`line`], but keeps the line breaks.
pub fn lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| plain(line).trim_end().to_owned()).collect();
    lines.join("\n")
}

/// [`lines`], where each line but the first begins with `margin`.
pub fn indented(text: &str, margin: &str) -> String {
    lines(text).replace('\n', &format!("\n{margin}"))
}

/// JSON with the same meaning: characters that serde does not escape, but that may control a terminal, become `\uXXXX`.
pub fn json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // serde escapes those below 0x20; the only one left is a line break of a pretty-printed document.
        if (c.is_control() && c != '\n') || reorders(c) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

/// Takes one line, so that a sequence without an end hides no more than the rest of its line.
fn plain(line: &str) -> String {
    // The one-character forms of ESC and a letter (ECMA-48, 5.3): U+009B is `ESC [`.
    let mut seven_bit = String::with_capacity(line.len());
    for c in line.chars() {
        match u32::from(c) {
            c1 @ 0x80..=0x9f => {
                seven_bit.push('\x1b');
                seven_bit.extend(char::from_u32(c1 - 0x40));
            }
            _ => seven_bit.push(c),
        }
    }
    let stripped = anstream::adapter::strip_str(&seven_bit).to_string();
    let blanks = stripped.replace(['\t', '\r'], " ");
    blanks.chars().filter(|c| !c.is_control() && !reorders(*c)).collect()
}

/// Whether it makes a terminal show characters in another order, or is invisible (UAX #9; "Trojan Source", CVE-2021-42574).
fn reorders(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escape_sequences_are_removed_whole() {
        for (hostile, shown) in [
            ("\x1b[2J\x1b[31mred\x1b[0m", "red"),
            ("\x1b]0;title\x07after", "after"),
            ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\u{9b}31mred", "red"),
            ("\u{9d}0;title\x07after", "after"),
            ("\x1bPdevice control\x1b\\after", "after"),
            ("a\u{7}b\u{8}c\u{7f}", "abc"),
            ("safe \u{202e}drowssap", "safe drowssap"),
            ("tab\there", "tab here"),
            ("日本語 🍣 é", "日本語 🍣 é"),
        ] {
            assert_eq!(line(hostile), shown, "{hostile:?}");
        }
    }

    #[test]
    fn a_sequence_without_an_end_hides_only_the_rest_of_its_line() {
        assert_eq!(lines("one\x1b]0;never ended\ntwo\r\nthree"), "one\ntwo\nthree");
        assert_eq!(line("one\x1b[\ntwo"), "one two");
        assert_eq!(indented("a\nb\n\nc", "    "), "a\n    b\n    \n    c");
    }

    #[test]
    fn json_keeps_its_meaning() {
        assert_eq!(json("{\"a\":\"\u{9b}31m\u{202e}é\"}"), "{\"a\":\"\\u009b31m\\u202eé\"}");
    }

    proptest! {
        #[test]
        fn no_text_leaves_anything_that_controls_a_terminal(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let hostile = String::from_utf8_lossy(&bytes);
            let shown = lines(&hostile);
            prop_assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
            prop_assert!(!line(&hostile).contains('\n'));
        }

        #[test]
        fn text_without_controls_is_left_as_it_is(text in "[a-zA-Z0-9é日🍣 .,:;()/-]{0,40}") {
            prop_assert_eq!(line(&text), text);
        }
    }
}
