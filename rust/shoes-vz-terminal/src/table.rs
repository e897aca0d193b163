//! Tables without borders: columns by display width (a Japanese character takes two cells), two spaces between them.
//!
//! On a terminal the last column wraps within its width; the others never do, so that ids can be copied. Into a pipe
//! each row is one line, whatever its length, for `grep` and `awk`.

use std::io::{self, IsTerminal as _};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width as Cells, presets};

use crate::text;

/// The least width of the last column in cells; a terminal that is too narrow for it wraps by itself.
const MIN_LAST_WIDTH: u16 = 24;

/// How wide a table may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// As wide as its cells.
    Any,
    Terminal(u16),
}

impl Width {
    pub fn of_stdout() -> Self {
        let out = io::stdout();
        let size = out.is_terminal().then(|| terminal_size::terminal_size_of(&out)).flatten();
        size.map_or(Self::Any, |(width, _)| Self::Terminal(width.0))
    }
}

/// The table's lines; the last has no line break. What controls a terminal is removed from the cells; an empty one is
/// shown as a dash.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>, width: Width) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.iter().copied());
    for row in rows {
        table.add_row(
            row.iter().map(|cell| text::line(cell)).map(|c| if c.is_empty() { "-".into() } else { c }),
        );
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2)).set_constraint(ColumnConstraint::ContentWidth);
    }
    if let Some(last) = table.column_mut(head.len().saturating_sub(1)) {
        last.set_padding((0, 0));
    }
    if let Width::Terminal(cells) = width {
        let widths = table.column_max_content_widths();
        let (note, others) = widths.split_last().map_or((0, 0), |(note, rest)| {
            (*note, rest.iter().fold(0, |sum: u16, w| sum.saturating_add(*w).saturating_add(2)))
        });
        let left = cells.saturating_sub(others).max(MIN_LAST_WIDTH);
        if note > left {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(others.saturating_add(left));
            if let Some(last) = table.column_mut(head.len().saturating_sub(1)) {
                last.set_constraint(ColumnConstraint::Absolute(Cells::Fixed(left)));
            }
        }
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        vec![
            row([
                "東京の機械",
                "2d",
                "a note with a good many words in it, longer than the terminal is wide",
            ]),
            row(["mac 🍣", "", "\x1b[2Jhostile\nsecond"]),
        ]
    }

    #[test]
    fn columns_are_aligned_by_display_width_and_a_pipes_rows_stay_whole() {
        let shown = table(&["HOST", "AGE", "NOTE"], rows(), Width::Any);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(
            lines,
            [
                "HOST        AGE  NOTE",
                "東京の機械  2d   a note with a good many words in it, longer than the terminal is wide",
                "mac 🍣      -    hostile second",
            ]
        );
    }

    #[test]
    fn on_a_terminal_the_last_column_wraps_within_its_width_and_no_other_does() {
        let shown = table(&["HOST", "AGE", "NOTE"], rows(), Width::Terminal(50));
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines.len() > 3, "{shown}");
        assert!(lines[1].starts_with("東京の機械  2d   a note"), "{shown}");
        assert!(lines[2].starts_with("                 "), "the rest of the note is below it: {shown}");
        // Wide letters count as two: there are five of them.
        assert!(lines.iter().all(|l| l.chars().count() + 5 <= 50 || !l.contains('東')), "{shown}");
    }

    #[test]
    fn an_id_is_never_broken_not_even_where_it_does_not_fit() {
        let id = "00000000-0000-4000-8000-000000000001";
        let rows = vec![vec![id.to_owned(), "a note that is longer than twenty-four cells".to_owned()]];
        assert!(table(&["ID", "NOTE"], rows, Width::Terminal(20)).contains(id));
    }
}
