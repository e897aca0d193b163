//! Bounded, safe excerpts of output that may be huge, not UTF-8, or malicious.

/// Longest message of a panic, in bytes.
const MAX_PANIC: usize = 512;

/// The last `max_lines` lines of `bytes`, together at most `max_bytes` bytes of UTF-8. Invalid bytes become U+FFFD.
pub fn tail(bytes: &[u8], max_lines: usize, max_bytes: usize) -> String {
    let trimmed = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let start = trimmed
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, b)| **b == b'\n')
        .nth(max_lines.saturating_sub(1))
        .map_or(0, |(at, _)| at + 1);
    let text = String::from_utf8_lossy(&trimmed[start..]);
    let mut cut = text.len().saturating_sub(max_bytes);
    while !text.is_char_boundary(cut) {
        cut += 1;
    }
    text[cut..].to_owned()
}

/// The message of a panic, in one line and bounded.
pub fn panic_reason(panic: &(dyn std::any::Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().copied();
    let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    one_line(message.unwrap_or("(without a message)"), MAX_PANIC)
}

/// `text` without anything that controls a terminal: removes whole escape sequences, every control character but line feed
/// and tab, and the characters that change the direction of writing. A carriage return becomes a line feed.
pub fn plain(text: &str) -> String {
    let lines = text.replace("\r\n", "\n").replace('\r', "\n");
    let reorders =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let shown = |c: &char| matches!(c, '\n' | '\t') || !(c.is_control() || reorders(*c));
    anstream::adapter::strip_str(&lines).to_string().chars().filter(shown).collect()
}

/// The first `max` bytes of `text`, which end in "…" when there are more.
pub fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// [`plain`], in one line of at most `max` bytes.
pub fn one_line(text: &str, max: usize) -> String {
    let plain = plain(text);
    cut(&plain.split_whitespace().collect::<Vec<_>>().join(" "), max)
}

/// The last line of `text` that is not blank, as [`one_line`]; `None` when there is none.
pub fn last_line(text: &str, max: usize) -> Option<String> {
    let plain = plain(text);
    let last = plain.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(one_line(last, max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_lines_are_kept() {
        assert_eq!(tail(b"a\nb\nc\n", 2, 100), "b\nc");
        assert_eq!(tail(b"a\nb\nc", 50, 100), "a\nb\nc");
        assert_eq!(tail(b"", 50, 100), "");
        assert_eq!(tail(b"\xff\xfe!\n", 1, 100), "\u{fffd}\u{fffd}!");
    }

    #[test]
    fn what_controls_a_terminal_is_removed_whole() {
        assert_eq!(plain("\u{1b}[0;31mred\u{1b}[0m \u{1b}]0;title\u{7}end"), "red end");
        assert_eq!(plain("\u{1b}]8;;http://evil\u{1b}\\link\u{1b}]8;;\u{1b}\\"), "link");
        assert_eq!(plain("10%\r20%\r\ndone\t\u{8}!\u{202e}"), "10%\n20%\ndone\t!");
        assert_eq!(plain("日本語"), "日本語");
    }

    #[test]
    fn the_last_line_that_is_not_blank_is_one_line_and_bounded() {
        assert_eq!(
            last_line("first\n\u{1b}[1mthe   cause\u{1b}[0m\n\n  \n", 100).as_deref(),
            Some("the cause")
        );
        assert_eq!(last_line("\u{1b}[0m\r\n", 100), None);
        assert_eq!(last_line(&"é".repeat(100), 10).as_deref(), Some("ééé…"));
        assert_eq!(one_line("a\nb\r\n c", 100), "a b c");
    }

    proptest! {
        #[test]
        fn no_control_character_is_left_and_no_limit_is_exceeded(text: String, max in 3usize..100) {
            prop_assert!(plain(&text).chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
            let line = one_line(&text, max);
            prop_assert!(line.len() <= max && !line.contains('\n'));
        }

        #[test]
        fn a_tail_is_bounded_whatever_comes(bytes: Vec<u8>, lines in 1usize..60, max in 0usize..200) {
            let t = tail(&bytes, lines, max);
            prop_assert!(t.len() <= max);
            prop_assert!(t.matches('\n').count() < lines);
        }
    }
}
