use super::*;
use crate::report::tests::sample;
use crate::results::tests::run;
use crate::results::{Run, ServerEntry, summarize};
use clap::ValueEnum;

/// Every server in every job, in three rounds that lie apart.
fn everything() -> Results {
    let mut runs: Vec<Run> = Vec::new();
    for (index, server) in (1_u32..).zip(ServerId::value_variants()) {
        for (place, job) in (1_u32..).zip(&jobs::JOBS) {
            for round in 1..=3 {
                let iops = f64::from(index * place * 1000 * round);
                let cpu = (server.role() != crate::servers::Role::Limit).then_some(iops / 1000.0);
                runs.push(Run { round, ..run(*server, job.name, iops, cpu) });
            }
        }
    }
    let entry = |server: &ServerId| ServerEntry {
        server: *server,
        class: server.class(),
        role: server.role(),
        command: None,
    };
    let servers = ServerId::value_variants().iter().map(entry).collect();
    Results { summaries: summarize(&runs), runs, servers, ..sample() }
}

/// An element's name and attributes.
type Element = (String, Vec<(String, String)>);

/// Reads XML as strictly as these pictures need it: nesting, quotes, no bare `<` or `&`.
fn elements(xml: &str) -> Result<Vec<Element>, String> {
    let (mut open, mut found, mut rest) = (Vec::new(), Vec::new(), xml.trim_end());
    while !rest.is_empty() {
        let (text, after) = rest.split_at(rest.find('<').ok_or(format!("text at the end: {rest}"))?);
        check_text(text)?;
        let (tag, after) = after[1..].split_once('>').ok_or("a tag without an end")?;
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            let begun: Option<String> = open.pop();
            if begun.as_deref() != Some(name) {
                return Err(format!("{begun:?} is closed by {name}"));
            }
            continue;
        }
        let element = element(tag.trim_end_matches('/'))?;
        if !tag.ends_with('/') {
            open.push(element.0.clone());
        }
        found.push(element);
    }
    if open.is_empty() { Ok(found) } else { Err(format!("not closed: {open:?}")) }
}

fn check_text(text: &str) -> Result<(), String> {
    let known = ["amp;", "lt;", "gt;", "quot;"];
    let is_known = |part: &str| known.iter().any(|name| part.starts_with(name));
    let good = !text.contains(['<', '>']) && text.split('&').skip(1).all(is_known);
    if good { Ok(()) } else { Err(format!("not escaped: {text}")) }
}

fn element(tag: &str) -> Result<Element, String> {
    let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
    let mut attributes = Vec::new();
    while !rest.trim_start().is_empty() {
        let (key, after) = rest.trim_start().split_once("=\"").ok_or(format!("no value in {tag}"))?;
        let (value, after) = after.split_once('"').ok_or(format!("no second quote in {tag}"))?;
        check_text(value)?;
        attributes.push((key.to_owned(), value.to_owned()));
        rest = after;
    }
    Ok((name.to_owned(), attributes))
}

fn number(element: &Element, key: &str) -> f64 {
    let value = element.1.iter().find(|(name, _)| name == key);
    value.map_or(0.0, |(_, value)| value.parse().unwrap())
}

/// What has a class and a place: bars, and the squares of the legend.
fn rectangles(svg: &str) -> Vec<Element> {
    let all = elements(svg).unwrap();
    all.into_iter()
        .filter(|(name, attributes)| name == "rect" && attributes.iter().any(|(key, _)| key == "x"))
        .collect()
}

fn assert_inside(svg: &str, what: &str) {
    let all = elements(svg).unwrap_or_else(|why| panic!("{what}: {why}"));
    let (width, height) = (number(&all[0], "width"), number(&all[0], "height"));
    for element in &all[1..] {
        let (x, y) = (number(element, "x"), number(element, "y"));
        let (right, low) = (x + number(element, "width"), y + number(element, "height"));
        assert!(x >= 0.0 && y >= 0.0 && right <= width && low <= height, "{what}: {element:?}");
        assert!(number(element, "width") >= 0.0 && number(element, "height") >= 0.0, "{what}: {element:?}");
    }
}

#[test]
fn pictures_are_well_formed_and_everything_is_inside() {
    let plots = all(&everything());
    assert_eq!(plots.len(), Class::ALL.len() * GROUPS.len() * 2);
    for plot in &plots {
        assert_inside(&plot.svg, &plot.file);
    }
}

#[test]
fn every_bar_is_there_and_as_high_as_its_value() {
    let results = everything();
    let plot = bars(&results, (Class::Cached, Client::Fio), &GROUPS[0], &IOPS).unwrap();
    let servers = ServerId::value_variants().iter().filter(|server| server.class() == Class::Cached).count();
    let bars = rectangles(&plot.svg);
    assert_eq!(bars.len(), servers * GROUPS[0].jobs.len() + servers, "bars and the legend");
    // The first server's bars: jobs one to four, so their values are as 1, 2, 3, 4.
    let heights: Vec<f64> = (0..4).map(|job| number(&bars[job * servers], "height")).collect();
    for (place, height) in (1_u32..).zip(&heights) {
        assert!((height - heights[0] * f64::from(place)).abs() < 0.6, "{heights:?}");
    }
}

#[test]
fn whiskers_reach_from_the_smallest_to_the_largest() {
    let spread = Spread { median: 50.0, min: 0.0, max: 100.0 };
    let series = vec![Series { name: "one".into(), colour: 0, values: vec![Some(spread)] }];
    let chart = Bars { title: "t", unit: "u", groups: vec![["a".into(), "b".into()]], series };
    let svg = svg::bars(&chart).unwrap();
    let all = elements(&svg).unwrap();
    let is = |element: &&Element, class: &str| element.1.contains(&("class".to_owned(), class.to_owned()));
    let way = |class: &str| all.iter().find(|element| is(element, class)).unwrap().1[1].1.clone();
    // The axis is where zero is; the tick below 100 is half as far away as the whisker's top.
    let floor: f64 = way("axis").split([' ', 'H']).nth(1).unwrap().parse().unwrap();
    let ends: Vec<f64> = way("whisker")
        .split('M')
        .skip(1)
        .map(|part| part.split([' ', 'H', 'V']).nth(1).unwrap().parse().unwrap())
        .collect();
    let bar = &rectangles(&svg)[0];
    assert_eq!(ends[2], floor, "the smallest is nothing");
    assert!(((floor - ends[0]) - 2.0 * number(bar, "height")).abs() < 0.3, "{ends:?} {bar:?}");
}

#[test]
fn names_are_escaped() {
    let spread = Spread::of(&[1.0]);
    let series = vec![Series { name: "a<b & \"c\"".into(), colour: 7, values: vec![spread, None] }];
    let groups = vec![["<g>".to_owned(), "&".to_owned()], [String::new(), String::new()]];
    let svg = svg::bars(&Bars { title: "</svg>", unit: "<u>", groups, series: series.clone() }).unwrap();
    assert_inside(&svg, "bars");
    assert!(svg.contains("a&lt;b &amp; &quot;c&quot;"), "{svg}");
    let x = vec!["<1>".to_owned(), "2".to_owned()];
    let lines = Lines { title: "<", unit: "&", x_title: ">", x, series };
    assert_inside(&svg::lines(&lines).unwrap(), "lines");
}

#[test]
fn the_checker_sees_what_is_wrong() {
    for wrong in ["<a>", "<a></b>", "<a>&</a>", "<a b=c/>", "<a b=\"c/>", "<a/>x", "<a b=\"<\"/>"] {
        assert!(elements(wrong).is_err(), "{wrong}");
    }
    assert_eq!(elements("<a b=\"c\"><d/>&amp;</a>").unwrap().len(), 2);
}

#[test]
fn a_legend_that_is_too_long_for_a_line_takes_another() {
    let name = |index: u32| format!("a server with a rather long name {index}");
    let series = |count: u32| -> Vec<Series> {
        let one = |index| Series { name: name(index), colour: 0, values: vec![Spread::of(&[1.0])] };
        (0..count).map(one).collect()
    };
    let height = |count| {
        let groups = vec![["a".into(), "b".into()]];
        let svg = svg::bars(&Bars { title: "t", unit: "u", groups, series: series(count) }).unwrap();
        assert_inside(&svg, "bars");
        number(&elements(&svg).unwrap()[0], "height")
    };
    assert!(height(9) > height(1));
}

#[test]
fn nothing_measured_is_no_picture() {
    let results = Results { summaries: Vec::new(), store: None, ..sample() };
    assert_eq!(all(&results), []);
}

#[test]
fn reads_by_snapshots_are_lines_in_the_order_of_depth() {
    use crate::store::record::{Key, Recorder};
    let mut recorder = Recorder::default();
    for (depth, value) in [(32, 0.97), (8, 0.99), (128, 0.95)] {
        let measure = deep_reads::ratio_name(depth);
        recorder.put(
            Key { scenario: deep_reads::NAME, subject: "volume".into(), measure, unit: "x" },
            1,
            value,
        );
    }
    let store = sample().store.unwrap();
    assert_eq!(deep_reads_plot(&store), None, "other rows are no reads");
    let store = StoreResults { rows: recorder.rows(), ..store };
    let plot = deep_reads_plot(&store).unwrap();
    assert_inside(&plot.svg, "lines");
    let all = elements(&plot.svg).unwrap();
    let points: Vec<&Element> = all.iter().filter(|(name, _)| name == "circle").collect();
    let places: Vec<(f64, f64)> =
        points.iter().map(|point| (number(point, "cx"), number(point, "cy"))).collect();
    assert!(places.is_sorted_by(|left, right| left.0 < right.0), "{places:?}");
    assert!(places.is_sorted_by(|left, right| left.1 < right.1), "8, 32, 128: lower and lower: {places:?}");
}

#[test]
fn a_page_finds_its_pictures() {
    let way = |from: &str, to: &str| relative(Path::new(from), Path::new(to));
    assert_eq!(way("/r/docs", "/r/docs/benchmarks"), "benchmarks");
    assert_eq!(way("/r/docs", "/r/docs"), ".");
    assert_eq!(way("/r/docs", "/r/out/a b"), "../out/a%20b");
    let dir = tempfile::tempdir().unwrap();
    let (page, pictures) = (dir.path().join("page.md"), dir.path().join("p"));
    let plots = [Plot { file: "a.svg".into(), title: "A".into(), svg: "<svg/>".into() }];
    write(&plots, &pictures).unwrap();
    assert_eq!(fs::read_to_string(pictures.join("a.svg")).unwrap(), "<svg/>");
    let found = links(&plots, &page, &pictures).unwrap();
    assert_eq!(found, [Link { title: "A".into(), target: "p/a.svg".into() }]);
}

#[test]
fn every_headline_job_is_drawn_once() {
    for job in jobs::JOBS.iter().filter(|job| job.set == jobs::JobSet::Headline) {
        let count = GROUPS.iter().filter(|group| group.jobs.contains(&job.name)).count();
        assert_eq!(count, 1, "{}", job.name);
    }
}
