//! Bounded pieces of possibly huge, possibly non-UTF-8 output.

/// The last `max_lines` lines of `bytes`, in all at most `max_bytes` bytes of UTF-8; invalid bytes become U+FFFD.
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

    proptest! {
        #[test]
        fn a_tail_is_bounded_whatever_comes(bytes: Vec<u8>, lines in 1usize..60, max in 0usize..200) {
            let t = tail(&bytes, lines, max);
            prop_assert!(t.len() <= max);
            prop_assert!(t.matches('\n').count() < lines);
        }
    }
}
