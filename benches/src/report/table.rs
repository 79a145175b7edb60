//! A table, as text and in Markdown.

/// A table, and which of its columns are words (aligned left) rather than numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Heads of the columns.
    pub head: Vec<&'static str>,
    /// Cells, as many a row as there are heads.
    pub rows: Vec<Vec<String>>,
    /// How many columns from the left are words.
    pub words: usize,
}

impl Table {
    /// Aligned with spaces.
    pub fn text(&self) -> String {
        let head: Vec<String> = self.head.iter().map(|&head| head.to_owned()).collect();
        let all: Vec<&Vec<String>> = std::iter::once(&head).chain(&self.rows).collect();
        let width =
            |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let lines: Vec<String> = all.iter().map(|row| self.line(row, &widths)).collect();
        format!("{}\n{}\n", self.title, lines.join("\n"))
    }

    fn line(&self, row: &[String], widths: &[usize]) -> String {
        let cell = |(column, (text, &width)): (usize, (&String, &usize))| {
            if column < self.words { format!("{text:<width$}") } else { format!("{text:>width$}") }
        };
        let cells: Vec<String> = row.iter().zip(widths).enumerate().map(cell).collect();
        format!("  {}", cells.join("  ").trim_end())
    }

    /// As a Markdown table under a heading of the third level.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
        let head: Vec<String> = self.head.iter().map(|&head| head.to_owned()).collect();
        let rule: Vec<String> = (0..head.len())
            .map(|column| if column < self.words { "---" } else { "---:" }.to_owned())
            .collect();
        let mut lines = vec![line(&head), line(&rule)];
        lines.extend(self.rows.iter().map(|row| line(row)));
        format!("### {}\n\n{}\n", self.title, lines.join("\n"))
    }
}
