//! Rows of text in columns.

/// Pads every column but the last to its widest cell; two spaces between.
pub(super) fn render(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// At most `width` characters, the middle left out; and none that would move the cursor.
pub(super) fn fit(text: &str, width: usize) -> String {
    let chars: Vec<char> = text.chars().map(|char| if char.is_control() { '?' } else { char }).collect();
    if chars.len() <= width {
        return chars.into_iter().collect();
    }
    let head = width.saturating_sub(1) / 2;
    let tail = width.saturating_sub(1) - head;
    chars[..head].iter().chain(['…'].iter()).chain(&chars[chars.len() - tail..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let rows = [vec!["A".to_owned(), "B".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(render(&rows), "A     B\nlong\n");
    }

    #[test]
    fn long_text_loses_its_middle() {
        assert_eq!(fit("abcdefgh", 5), "ab…gh");
        assert_eq!(fit("abcde", 5), "abcde");
        assert_eq!(fit("a\nb\u{1b}", 5), "a?b?");
    }
}
