//! Plain files as disks: what a volume without snapshots is measured by. They cannot be cut.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::disks::{Disk, filled, remove};
use super::room::{NEXT_DIR, Room, Served, text_of, words};
use crate::fio::uri;
use crate::trouble::{OrTrouble, Trouble};

/// Who serves a file. All of them through the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum By {
    /// Our nbd-server.
    #[default]
    Ours,
    /// nbdkit's file plugin.
    Nbdkit,
    /// qemu-nbd.
    QemuNbd,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "nbd-server",
            Self::Nbdkit => "nbdkit",
            Self::QemuNbd => "qemu-nbd",
        }
    }

    /// The command line; `ours`: our server's program.
    fn line(self, ours: &str, image: &str, socket: &str) -> Vec<String> {
        let qemu = ["qemu-nbd", "-t", "-e", "8", "-k", socket, "-f", "raw"];
        match self {
            Self::Ours => words(&[ours, image, "--unix", socket, "--cache", "writeback"]),
            Self::Nbdkit => words(&["nbdkit", "-f", "-U", socket, "file", image]),
            Self::QemuNbd => {
                words(&[&qemu, ["--cache=writeback", "--discard=unmap", image].as_slice()].concat())
            }
        }
    }
}

/// A plain file behind a server.
#[derive(Debug, Default)]
pub struct PlainFile {
    by: By,
    file: Option<PathBuf>,
}

impl PlainFile {
    /// A file that somebody serves.
    pub fn new(by: By) -> Self {
        Self { by, file: None }
    }
}

impl Disk for PlainFile {
    fn name(&self) -> &'static str {
        match self.by {
            By::Ours => "plain-file",
            By::Nbdkit => "nbdkit-file",
            By::QemuNbd => "qemu-nbd-raw",
        }
    }

    fn how(&self) -> String {
        self.by.line(self.by.name(), "$IMG", "$SOCK").join(" ")
    }

    fn whole(&mut self, room: &Room<'_>) -> Result<Served, Trouble> {
        self.discard(room)?;
        let file = self.file.insert(room.new_image("raw"));
        serve_new_file(room, file, self.by)
    }

    fn cut(&mut self, _: &Room<'_>, _: Served) -> Result<Served, Trouble> {
        Err(Trouble::new("cut a plain file", "it cannot be cut", "leave it out of this scenario"))
    }

    fn discard(&mut self, _: &Room<'_>) -> Result<(), Trouble> {
        self.file.take().map_or(Ok(()), |file| remove(&file))
    }
}

/// Serves a new file, and writes all of it.
///
/// # Errors
/// No space, or the server fails.
pub fn serve_new_file(room: &Room<'_>, file: &Path, by: By) -> Result<Served, Trouble> {
    let made = File::create(file).and_then(|file| file.set_len(room.plan.image_bytes));
    made.or_trouble(|| format!("make {}", file.display()), NEXT_DIR)?;
    let socket = room.new_short("nbd");
    let line = by.line(&text_of(&room.plan.nbd_server), &text_of(file), &text_of(&socket));
    let server = room.serve(by.name(), line, &socket)?;
    filled(room, Served { uri: uri("", &socket), server: Some(server) })
}
