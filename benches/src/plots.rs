//! Pictures of the results: which are drawn, and under which names.
//!
//! What lives here: the choice of figures. How they are drawn is in [`svg`], which knows nothing of servers. Names of
//! files are stable, so that a page may link them: `iops-4k-cached.svg` is the jobs of 4 KiB in the cached class.

pub mod svg;

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::client::Client;
use crate::jobs::{self, Job};
use crate::results::{Results, Spread, Summary};
use crate::servers::{Class, ServerId};
use crate::store::record::Row;
use crate::store::{StoreResults, deep_reads};
use crate::trouble::{OrTrouble, Trouble};
use svg::{Bars, Lines, Series};

const NEXT_DIR: &str = "choose another directory with --plots";

/// A picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plot {
    /// Its file's name.
    pub file: String,
    /// What it shows.
    pub title: String,
    /// The picture itself.
    pub svg: String,
}

/// Jobs that are drawn side by side.
struct Group {
    key: &'static str,
    title: &'static str,
    jobs: &'static [&'static str],
    /// Whether bytes say more than requests.
    in_bytes: bool,
}

const GROUPS: [Group; 4] = [
    Group {
        key: "4k",
        title: "4 KiB random, one connection",
        jobs: &[jobs::RANDREAD_QD64, jobs::RANDWRITE_QD64, jobs::RANDREAD_QD1, jobs::RANDWRITE_QD1],
        in_bytes: false,
    },
    Group {
        key: "depth",
        title: "4 KiB random, 16 in flight a connection",
        jobs: &[jobs::RANDREAD_QD16, jobs::RANDWRITE_QD16, jobs::RANDREAD_JOBS4, jobs::RANDWRITE_JOBS4],
        in_bytes: false,
    },
    Group {
        key: "sequential",
        title: "sequential",
        jobs: &[jobs::READ_256K, jobs::WRITE_256K, jobs::READ_1M, jobs::WRITE_1M],
        in_bytes: true,
    },
    Group {
        key: "flush",
        title: "4 KiB random writes with FLUSH",
        jobs: &[jobs::FSYNC_1, jobs::FSYNC_32],
        in_bytes: false,
    },
];

/// What is drawn of a summary.
#[derive(Clone, Copy)]
struct Figure {
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    of: fn(&Summary) -> Option<Spread>,
}

const IOPS: Figure =
    Figure { key: "iops", title: "I/Os a second", unit: "IOPS", of: |summary| Some(summary.iops) };
const BYTES: Figure =
    Figure { key: "bandwidth", title: "bandwidth", unit: "MiB/s", of: |summary| Some(summary.mib_per_s) };
const CPU: Figure = Figure {
    key: "cpu",
    title: "CPU time of the server",
    unit: "us a request",
    of: |summary| summary.cpu_us_per_request,
};

/// All pictures for which something was measured.
pub fn all(results: &Results) -> Vec<Plot> {
    let mut plots = Vec::new();
    for class in Class::ALL {
        for group in &GROUPS {
            let speed = if group.in_bytes { BYTES } else { IOPS };
            for client in &results.settings.clients {
                let drawn = [speed, CPU].map(|figure| bars(results, (class, *client), group, &figure));
                plots.extend(drawn.into_iter().flatten());
            }
        }
    }
    plots.extend(results.store.as_ref().and_then(deep_reads_plot));
    plots
}

/// By one client: bars of two have nothing to say to each other.
fn bars(results: &Results, (class, client): (Class, Client), group: &Group, figure: &Figure) -> Option<Plot> {
    let of_both = |summary: &Summary| (summary.class, summary.client) == (class, client);
    let in_class = |summary: &&Summary| of_both(summary) && (figure.of)(summary).is_some();
    let measured: Vec<&Summary> = results.summaries.iter().filter(in_class).collect();
    let has = |job: &&Job| measured.iter().any(|summary| summary.job == job.name);
    let jobs: Vec<&Job> = group.jobs.iter().filter_map(|name| jobs::find(name)).filter(has).collect();
    let is_there = |server: &&ServerId| {
        let mut of_server = measured.iter().filter(|summary| summary.server == **server);
        of_server.any(|summary| jobs.iter().any(|job| job.name == summary.job))
    };
    let servers = results.servers.iter().map(|entry| &entry.server).filter(is_there);
    let series: Vec<Series> =
        servers.map(|server| server_series(*server, &jobs, &measured, figure)).collect();
    let (by, suffix) = match client {
        Client::Fio => (String::new(), ""),
        Client::Ours => (format!(", by {}", client.label()), "-by-nbd-load"),
    };
    let title = format!("{}: {}, {} class{by}", group.title, figure.title, class.name());
    let chart = Bars {
        title: &title,
        unit: figure.unit,
        groups: jobs.iter().map(|job| label(job)).collect(),
        series,
    };
    let svg = svg::bars(&chart)?;
    let file = format!("{}-{}-{}{suffix}.svg", figure.key, group.key, class.name());
    Some(Plot { file, svg, title })
}

fn server_series(server: ServerId, jobs: &[&Job], measured: &[&Summary], figure: &Figure) -> Series {
    let value = |job: &&Job| {
        let mut of_job = measured.iter().filter(|summary| summary.job == job.name);
        of_job.find(|summary| summary.server == server).and_then(|summary| (figure.of)(summary))
    };
    Series {
        name: server.name().to_owned(),
        colour: colour_of(server),
        values: jobs.iter().map(value).collect(),
    }
}

/// The same server has the same colour in all pictures of a class, whoever else takes part.
fn colour_of(server: ServerId) -> usize {
    match server {
        ServerId::Ours | ServerId::OursDirect | ServerId::OursMemory => 0,
        ServerId::Blockd | ServerId::BlockdDirect => 1,
        ServerId::NbdkitFile | ServerId::NbdkitMemory => 2,
        ServerId::QemuNbd | ServerId::QemuNbdDirect => 3,
        ServerId::DebianNbdServer => 4,
        ServerId::FioFile | ServerId::NbdkitNull => 5,
    }
}

/// A job in two lines.
fn label(job: &Job) -> [String; 2] {
    let kind = match job.rw {
        "read" => "sequential read",
        "write" => "sequential write",
        "randread" => "random read",
        "randwrite" => "random write",
        other => other,
    };
    let connections = if job.numjobs > 1 { format!("{} x ", job.numjobs) } else { String::new() };
    let flush = job.fsync.map_or(String::new(), |writes| format!(", FLUSH per {writes}"));
    [format!("{} {kind}", job.bs), format!("{connections}depth {}{flush}", job.iodepth)]
}

/// Reads by the number of snapshots, each held against a twin with the same writes and none.
fn deep_reads_plot(store: &StoreResults) -> Option<Plot> {
    let ratios: Vec<(u32, &Row)> = store.rows.iter().filter_map(|row| Some((depth_of(row)?, row))).collect();
    let mut depths: Vec<u32> = ratios.iter().map(|(depth, _)| *depth).collect();
    depths.sort_unstable();
    depths.dedup();
    let mut subjects: Vec<&str> = Vec::new();
    for (_, row) in &ratios {
        if !subjects.contains(&row.subject.as_str()) {
            subjects.push(&row.subject);
        }
    }
    let spread = |subject: &str, depth: u32| {
        let mut of_depth = ratios.iter().filter(|(other, _)| *other == depth);
        of_depth.find(|(_, row)| row.subject == subject).map(|(_, row)| row.spread)
    };
    let to_series = |(colour, subject): (usize, &&str)| Series {
        name: (*subject).to_owned(),
        colour,
        values: depths.iter().map(|depth| spread(subject, *depth)).collect(),
    };
    let title = "Random reads with snapshots, by those of a twin without".to_owned();
    let chart = Lines {
        title: &title,
        unit: "ratio",
        x_title: "snapshots",
        x: depths.iter().map(u32::to_string).collect(),
        series: subjects.iter().enumerate().map(to_series).collect(),
    };
    Some(Plot { file: "deep-reads.svg".to_owned(), svg: svg::lines(&chart)?, title })
}

fn depth_of(row: &Row) -> Option<u32> {
    let depth: u32 = row.measure.split(' ').next()?.parse().ok()?;
    (row.scenario == deep_reads::NAME && row.measure == deep_reads::ratio_name(depth)).then_some(depth)
}

/// Writes the pictures into a directory, which is made if need be.
///
/// # Errors
/// No permission or no space.
pub fn write(plots: &[Plot], dir: &Path) -> Result<(), Trouble> {
    fs::create_dir_all(dir).or_trouble(|| format!("make {}", dir.display()), NEXT_DIR)?;
    plots.iter().try_for_each(|plot| {
        let path = dir.join(&plot.file);
        fs::write(&path, &plot.svg).or_trouble(|| format!("write {}", path.display()), NEXT_DIR)
    })
}

/// A picture, as a page shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What it shows.
    pub title: String,
    /// Where it is, from the page.
    pub target: String,
}

/// The pictures in a directory, as a page beside or above it shows them.
///
/// # Errors
/// The directory is not there.
pub fn links(plots: &[Plot], page: &Path, dir: &Path) -> Result<Vec<Link>, Trouble> {
    let base = link_base(page, dir)?;
    let link = |plot: &Plot| Link { title: plot.title.clone(), target: format!("{base}/{}", plot.file) };
    Ok(plots.iter().map(link).collect())
}

fn link_base(page: &Path, dir: &Path) -> Result<String, Trouble> {
    let whole = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        path.canonicalize().or_trouble(|| format!("find {}", path.display()), NEXT_DIR)
    };
    let home = whole(page.parent().unwrap_or(Path::new("")))?;
    Ok(relative(&home, &whole(dir)?))
}

/// The way from one absolute directory to another, with slashes.
fn relative(from: &Path, to: &Path) -> String {
    let shared = from.components().zip(to.components()).take_while(|(left, right)| left == right).count();
    let up = from.components().skip(shared).map(|_| PathBuf::from(".."));
    let down = to.components().skip(shared).map(|part: Component<'_>| PathBuf::from(part.as_os_str()));
    let way: Vec<String> = up.chain(down).map(|part| part.to_string_lossy().replace(' ', "%20")).collect();
    if way.is_empty() { ".".to_owned() } else { way.join("/") }
}

#[cfg(test)]
mod tests;
