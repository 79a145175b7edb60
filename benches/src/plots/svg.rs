//! Charts as SVG: bars in groups, and lines. Text stays text; colours follow the reader's light or dark background.

use crate::results::Spread;

/// Width of every picture.
pub const WIDTH: f64 = 960.0;
/// Left, right, top of the field in which values are drawn, and its height.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 52.0;
const FIELD: f64 = 300.0;
/// What stands below the field: labels in two lines, then the legend.
const LABELS: f64 = 48.0;
const LEGEND_LINE: f64 = 22.0;
/// About the width of a letter; where text ends is only known to who draws it.
const LETTER: f64 = 7.4;
/// The part of a group's width that is left empty.
const GROUP_GAP: f64 = 0.16;
const BAR_MAX: f64 = 52.0;

/// Chosen so that each can be told from the others, and from a white and a black background.
const COLOURS: [&str; 6] = ["#d1495b", "#e59500", "#2e86c1", "#17a589", "#8e6bbf", "#7f8c8d"];

/// One colour's values.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Which of the colours.
    pub colour: usize,
    /// By group or place on the x axis; none where nothing was measured.
    pub values: Vec<Option<Spread>>,
}

/// Bars in groups.
#[derive(Debug, Clone)]
pub struct Bars<'a> {
    /// Above the picture.
    pub title: &'a str,
    /// Of the values.
    pub unit: &'a str,
    /// Below each group, in two lines.
    pub groups: Vec<[String; 2]>,
    /// Within each group.
    pub series: Vec<Series>,
}

/// Lines over places that are equally far apart.
#[derive(Debug, Clone)]
pub struct Lines<'a> {
    /// Above the picture.
    pub title: &'a str,
    /// Of the values.
    pub unit: &'a str,
    /// What the places are.
    pub x_title: &'a str,
    /// The places.
    pub x: Vec<String>,
    /// The lines.
    pub series: Vec<Series>,
}

/// The picture; none when there is no value.
pub fn bars(chart: &Bars<'_>) -> Option<String> {
    let mut canvas = Canvas::new(chart.title, chart.unit, &chart.series)?;
    let group = (WIDTH - LEFT - RIGHT) / chart.groups.len() as f64;
    let bar = (group * (1.0 - GROUP_GAP) / chart.series.len() as f64).min(BAR_MAX);
    for (index, label) in chart.groups.iter().enumerate() {
        let middle = LEFT + group * (index as f64 + 0.5);
        let begin = middle - bar * chart.series.len() as f64 / 2.0;
        for (place, series) in chart.series.iter().enumerate() {
            if let Some(Some(spread)) = series.values.get(index) {
                let told = format!("{}, {} {}", series.name, label[0], label[1]);
                canvas.bar(begin + bar * place as f64, bar, series.colour, *spread, &told);
            }
        }
        canvas.label(middle, &label.each_ref().map(String::as_str));
    }
    Some(canvas.finish(&chart.series))
}

/// The picture; none when there is no value.
pub fn lines(chart: &Lines<'_>) -> Option<String> {
    let mut canvas = Canvas::new(chart.title, chart.unit, &chart.series)?;
    let step = (WIDTH - LEFT - RIGHT) / chart.x.len() as f64;
    let x_of = |index: usize| LEFT + step * (index as f64 + 0.5);
    for series in &chart.series {
        let there = series.values.iter().enumerate().filter_map(|(index, value)| Some((index, (*value)?)));
        let points: Vec<(f64, Spread)> = there.map(|(index, spread)| (x_of(index), spread)).collect();
        canvas.line(series, &points);
    }
    for (index, place) in chart.x.iter().enumerate() {
        canvas.label(x_of(index), &[place, ""]);
    }
    canvas.text(WIDTH / 2.0, TOP + FIELD + 38.0, "middle", "note", chart.x_title);
    Some(canvas.finish(&chart.series))
}

/// A picture under way: frame and axis are drawn, the legend is not.
struct Canvas {
    body: String,
    title: String,
    top_value: f64,
    unit: String,
}

impl Canvas {
    fn new(title: &str, unit: &str, series: &[Series]) -> Option<Self> {
        let most = series.iter().flat_map(|series| &series.values).flatten().map(|spread| spread.max);
        let most = most.max_by(f64::total_cmp)?;
        let step = tick_step(most);
        // Room for the value above the highest whisker.
        let top_value = (most * 1.08 / step).ceil().max(1.0) * step;
        let (title, unit) = (title.to_owned(), unit.to_owned());
        let mut canvas = Self { body: String::new(), title, top_value, unit };
        canvas.axis(step);
        Some(canvas)
    }

    fn put(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    fn y_of(&self, value: f64) -> f64 {
        TOP + FIELD * (1.0 - value / self.top_value)
    }

    fn axis(&mut self, step: f64) {
        let title = self.title.clone();
        self.text(LEFT, 28.0, "start", "title", &title);
        for tick in 0..=(self.top_value / step).round() as u32 {
            let value = step * f64::from(tick);
            let y = self.y_of(value);
            let class = if tick == 0 { "axis" } else { "grid" };
            self.put(&format!(r#"<path class="{class}" d="M{LEFT:.1} {y:.1}H{:.1}"/>"#, WIDTH - RIGHT));
            self.text(LEFT - 8.0, y + 4.0, "end", "note", &short(value));
        }
        let (y, unit) = (TOP + FIELD / 2.0, escape(&self.unit));
        self.put(&format!(
            r#"<text class="note" text-anchor="middle" transform="translate(20 {y:.1}) rotate(-90)">{unit}</text>"#
        ));
    }

    fn bar(&mut self, x: f64, width: f64, colour: usize, spread: Spread, told: &str) {
        let (y, floor) = (self.y_of(spread.median), TOP + FIELD);
        let told = format!("{told}: {}", self.told(spread));
        self.put(&format!(
            r#"<rect class="{}" x="{:.1}" y="{y:.1}" width="{:.1}" height="{:.1}"><title>{}</title></rect>"#,
            class_of(colour),
            x + 1.0,
            width - 2.0,
            floor - y,
            escape(&told)
        ));
        self.whisker(x + width / 2.0, spread);
        let above = self.y_of(spread.max) - 5.0;
        self.text(x + width / 2.0, above, "middle", "value", &short(spread.median));
    }

    fn told(&self, spread: Spread) -> String {
        let [median, min, max] = [spread.median, spread.min, spread.max].map(short);
        format!("{median} {} ({min} to {max})", self.unit)
    }

    /// The smallest and the largest round.
    fn whisker(&mut self, x: f64, spread: Spread) {
        let (low, high) = (self.y_of(spread.min), self.y_of(spread.max));
        let (left, right) = (x - 4.0, x + 4.0);
        self.put(&format!(
            r#"<path class="whisker" d="M{left:.1} {high:.1}H{right:.1}M{x:.1} {high:.1}V{low:.1}M{left:.1} {low:.1}H{right:.1}"/>"#
        ));
    }

    fn line(&mut self, series: &Series, points: &[(f64, Spread)]) {
        let class = class_of(series.colour);
        let way = points.iter().map(|(x, spread)| format!("{x:.1},{:.1}", self.y_of(spread.median)));
        let way = way.collect::<Vec<String>>().join(" ");
        self.put(&format!(r#"<polyline class="line {class}" points="{way}"/>"#));
        for (x, spread) in points {
            self.whisker(*x, *spread);
            let (y, told) = (self.y_of(spread.median), format!("{}: {}", series.name, self.told(*spread)));
            let told = escape(&told);
            self.put(&format!(
                r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="4"><title>{told}</title></circle>"#
            ));
        }
    }

    fn label(&mut self, x: f64, lines: &[&str; 2]) {
        for (line, y) in lines.iter().zip([18.0, 34.0]) {
            self.text(x, TOP + FIELD + y, "middle", "note", line);
        }
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
        if !text.is_empty() {
            let text = escape(text);
            self.put(&format!(
                r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#
            ));
        }
    }

    /// Draws the legend, as many lines as it takes, and closes the picture.
    fn finish(mut self, series: &[Series]) -> String {
        let (mut x, mut y) = (LEFT, TOP + FIELD + LABELS + 14.0);
        for series in series {
            let width = 26.0 + LETTER * series.name.chars().count() as f64 + 14.0;
            if x + width > WIDTH - RIGHT && x > LEFT {
                (x, y) = (LEFT, y + LEGEND_LINE);
            }
            let class = class_of(series.colour);
            self.put(&format!(
                r#"<rect class="{class}" x="{x:.1}" y="{:.1}" width="14" height="12"/>"#,
                y - 10.0
            ));
            self.text(x + 20.0, y, "start", "note", &series.name);
            x += width;
        }
        let note = "medians; whiskers: smallest and largest round";
        self.text(WIDTH - RIGHT, y + LEGEND_LINE, "end", "value", note);
        let height = y + LEGEND_LINE + 12.0;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" width=\"{WIDTH:.0}\" \
             height=\"{height:.0}\" role=\"img\">\n<title>{}</title>\n{}\
             <rect class=\"back\" width=\"{WIDTH:.0}\" height=\"{height:.0}\"/>\n{}</svg>\n",
            escape(&self.title),
            style(),
            self.body
        )
    }
}

fn class_of(colour: usize) -> String {
    format!("c{}", colour % COLOURS.len())
}

/// Light, and dark for who prefers that.
fn style() -> String {
    let mut rules = String::from(
        "<style>\n.back{fill:#ffffff}\ntext{font-family:sans-serif;fill:#1f2328}\n\
         .title{font-size:17px;font-weight:bold}\n.note{font-size:13px}\n.value{font-size:11px}\n\
         .axis,.whisker{stroke:#1f2328;fill:none}\n.grid{stroke:#d0d7de;fill:none}\n",
    );
    for (index, colour) in COLOURS.iter().enumerate() {
        rules.push_str(&format!(".c{index}{{fill:{colour};stroke:{colour}}}\n"));
    }
    rules.push_str(
        ".line{fill:none;stroke-width:2}\n@media (prefers-color-scheme:dark){\n.back{fill:#0d1117}\n\
         text{fill:#e6edf3}\n.axis,.whisker{stroke:#e6edf3}\n.grid{stroke:#30363d}\n}\n</style>\n",
    );
    rules
}

/// A step of 1, 2 or 5 times a power of ten, so that four to ten of them reach the value.
fn tick_step(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let rough = most / 8.0;
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough).unwrap_or(10.0);
    factor * power
}

/// A value in few letters: `207k`, `12.6k`, `3.52`.
fn short(value: f64) -> String {
    let (scaled, suffix) = match value {
        value if value >= 1e6 => (value / 1e6, "M"),
        value if value >= 1e4 => (value / 1e3, "k"),
        value => (value, ""),
    };
    let digits = if scaled >= 100.0 {
        0
    } else if scaled >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{suffix}")
}

/// Text as it stands between tags.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}
