//! The disks that are compared: a volume of blockd, and its peers. Each can be made whole and be cut.
//!
//! *Whole*: every block written, nothing shared with a snapshot. *Cut*: what was written so far belongs to a
//! snapshot, and the disk goes on above it. A qcow2 overlay is a cut like any other, so a chain is many of them. Plain
//! files, which cannot be cut, are in `files`.

use std::fs;
use std::path::{Path, PathBuf};

use super::daemon::Daemon;
use super::files::{By, serve_new_file};
use super::loop_fs::{Kind, LoopFs};
use super::room::{NEXT_DIR, Room, Served, text_of, words};
use crate::fio::uri;
use crate::process::Server;
use crate::trouble::{OrTrouble, Trouble};

/// What overlays with subclusters are made with: 4 KiB subclusters, so that a 4 KiB write copies nothing.
const EXTENDED_L2: &str = "cluster_size=128k,extended_l2=on";

/// Something that is served, and that can be cut.
pub trait Disk {
    /// Its name in the report.
    fn name(&self) -> &'static str;

    /// How it is made, served and cut, in words.
    fn how(&self) -> String;

    /// Makes and serves it anew: every block written, no snapshot.
    ///
    /// # Errors
    /// No space, or a program fails; here and below.
    fn whole(&mut self, room: &Room<'_>) -> Result<Served, Trouble>;

    /// Takes a snapshot and serves what goes on above it.
    ///
    /// # Errors
    /// As above.
    fn cut(&mut self, room: &Room<'_>, served: Served) -> Result<Served, Trouble>;

    /// Waits for what cuts have left to do in the background.
    ///
    /// # Errors
    /// As above.
    fn rest(&self, _: &Room<'_>) -> Result<(), Trouble> {
        Ok(())
    }

    /// Gives its space back. It is served no longer.
    ///
    /// # Errors
    /// As above.
    fn discard(&mut self, room: &Room<'_>) -> Result<(), Trouble>;
}

/// A volume of blockd.
pub struct Volume<'a> {
    daemon: &'a Daemon,
    label: &'static str,
    /// The volume's name in the store: unique among those of this type.
    volume: &'static str,
    cuts: u32,
    exists: bool,
    /// Whether a cut really is one: without, it is the control.
    is_cut: bool,
}

impl<'a> Volume<'a> {
    /// A volume, its own name in the store.
    pub fn new(daemon: &'a Daemon, volume: &'static str) -> Self {
        Self { daemon, label: "volume", volume, cuts: 0, exists: false, is_cut: true }
    }

    /// The control: its snapshot is left out, everything else is the same.
    pub fn control(daemon: &'a Daemon) -> Self {
        Self { label: "volume, no snapshot", is_cut: false, ..Self::new(daemon, "control") }
    }
}

impl Disk for Volume<'_> {
    fn name(&self) -> &'static str {
        self.label
    }

    fn how(&self) -> String {
        let cut = if self.is_cut { "snapshot create" } else { "none" };
        format!("blockd serve (--cache writeback); cut: {cut}")
    }

    fn whole(&mut self, room: &Room<'_>) -> Result<Served, Trouble> {
        self.discard(room)?;
        self.daemon.create_volume(self.volume, room.plan.image_bytes)?;
        self.exists = true;
        filled(room, Served { uri: self.daemon.uri(self.volume), server: None })
    }

    fn cut(&mut self, room: &Room<'_>, served: Served) -> Result<Served, Trouble> {
        if self.is_cut {
            self.cuts += 1;
            self.daemon.snapshot(self.volume, &format!("s{}", self.cuts))?;
            self.daemon.make_room(room)?;
        }
        Ok(served)
    }

    fn rest(&self, room: &Room<'_>) -> Result<(), Trouble> {
        self.daemon.wait_until_packed(room).map(drop)
    }

    fn discard(&mut self, room: &Room<'_>) -> Result<(), Trouble> {
        if self.exists {
            self.daemon.delete_volume(room, self.volume)?;
            self.exists = false;
        }
        Ok(())
    }
}

/// How a qcow2 image is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QcowCut {
    /// A new overlay, with QEMU's defaults.
    Overlay,
    /// A new overlay with extended L2 entries.
    ExtendedL2,
    /// A snapshot inside the image.
    Internal,
}

/// A qcow2 image behind qemu-nbd.
pub struct Qcow2 {
    label: &'static str,
    cut: QcowCut,
    /// The base, then overlays; the last is served.
    chain: Vec<PathBuf>,
}

impl Qcow2 {
    /// An image that is cut that way.
    pub fn new(label: &'static str, cut: QcowCut) -> Self {
        Self { label, cut, chain: Vec::new() }
    }

    fn serve(&self, room: &Room<'_>) -> Result<Served, Trouble> {
        let (socket, top) = (room.new_short("nbd"), self.top());
        let path = text_of(&socket);
        let line = ["qemu-nbd", "-t", "-e", "8", "-k", &path, "-f", "qcow2"];
        let line = [line.as_slice(), &QEMU_CACHE, &[&top]].concat();
        let server = room.serve("qemu-nbd", words(&line), &socket)?;
        Ok(Served { uri: uri("", &socket), server: Some(server) })
    }

    fn top(&self) -> String {
        self.chain.last().map_or(String::new(), |file| text_of(file))
    }

    fn overlay(&mut self, room: &Room<'_>) -> Result<(), Trouble> {
        let file = room.new_image("qcow2");
        let (base, over) = (self.top(), text_of(&file));
        let mut line = vec!["qemu-img", "create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2"];
        if self.cut == QcowCut::ExtendedL2 {
            line.extend(["-o", EXTENDED_L2]);
        }
        line.push(&over);
        room.run(&line)?;
        self.chain.push(file);
        Ok(())
    }
}

/// Cache and I/O of qemu-nbd on qcow2: the page cache, as all others have it here.
const QEMU_CACHE: [&str; 3] = ["--cache=writeback", "--aio=threads", "--discard=unmap"];

impl Disk for Qcow2 {
    fn name(&self) -> &'static str {
        self.label
    }

    fn how(&self) -> String {
        let cut = match self.cut {
            QcowCut::Overlay => "qemu-img create -f qcow2 -b $IMG -F qcow2".to_owned(),
            QcowCut::ExtendedL2 => format!("qemu-img create -f qcow2 -b $IMG -F qcow2 -o {EXTENDED_L2}"),
            QcowCut::Internal => "qemu-img snapshot -c".to_owned(),
        };
        format!("qemu-nbd -t -e 8 -f qcow2 {} $IMG; cut: {cut}", QEMU_CACHE.join(" "))
    }

    fn whole(&mut self, room: &Room<'_>) -> Result<Served, Trouble> {
        self.discard(room)?;
        let file = room.new_image("qcow2");
        let (path, size) = (text_of(&file), room.plan.image_bytes.to_string());
        room.run(&["qemu-img", "create", "-q", "-f", "qcow2", &path, &size])?;
        self.chain.push(file);
        let served = self.serve(room)?;
        filled(room, served)
    }

    fn cut(&mut self, room: &Room<'_>, served: Served) -> Result<Served, Trouble> {
        served.server.map_or(Ok(()), Server::stop)?;
        match self.cut {
            QcowCut::Overlay | QcowCut::ExtendedL2 => self.overlay(room)?,
            QcowCut::Internal => room.run(&["qemu-img", "snapshot", "-c", "s", &self.top()]).map(drop)?,
        }
        self.serve(room)
    }

    fn discard(&mut self, _: &Room<'_>) -> Result<(), Trouble> {
        self.chain.drain(..).try_for_each(|file| remove(&file))
    }
}

/// A file on a file system with snapshots, behind our nbd-server.
pub struct Shared<'a> {
    fs: &'a LoopFs,
    kind: Kind,
    cuts: u32,
    /// The directory of this disk: on btrfs a subvolume.
    name: &'static str,
}

impl<'a> Shared<'a> {
    /// A disk in a directory of its own.
    pub fn new(fs: &'a LoopFs, kind: Kind, name: &'static str) -> Self {
        Self { fs, kind, cuts: 0, name }
    }

    fn home(&self) -> PathBuf {
        self.fs.point().join(self.name)
    }

    fn copy_name(&self, number: u32) -> PathBuf {
        self.fs.point().join(format!("{}-{number}", self.name))
    }
}

impl Disk for Shared<'_> {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Xfs => "xfs-reflink",
            Kind::Btrfs => "btrfs-snapshot",
        }
    }

    fn how(&self) -> String {
        let cut = match self.kind {
            Kind::Xfs => "cp --reflink=always",
            Kind::Btrfs => "btrfs subvolume snapshot -r",
        };
        let fs = self.kind.name();
        format!("nbd-server $IMG --cache writeback, on {fs} (loop device, direct I/O); cut: {cut}")
    }

    fn whole(&mut self, room: &Room<'_>) -> Result<Served, Trouble> {
        self.discard(room)?;
        let home = self.home();
        match self.kind {
            Kind::Xfs => fs::create_dir(&home).or_trouble(|| "make a directory".into(), NEXT_DIR)?,
            Kind::Btrfs => {
                room.run(&["btrfs", "subvolume", "create", &text_of(&home)]).map(drop)?;
            }
        }
        serve_new_file(room, &home.join("img"), By::Ours)
    }

    fn cut(&mut self, room: &Room<'_>, served: Served) -> Result<Served, Trouble> {
        self.cuts += 1;
        let (home, copy) = (self.home(), text_of(&self.copy_name(self.cuts)));
        match self.kind {
            Kind::Xfs => room.run(&["cp", "--reflink=always", &text_of(&home.join("img")), &copy])?,
            Kind::Btrfs => room.run(&["btrfs", "subvolume", "snapshot", "-r", &text_of(&home), &copy])?,
        };
        Ok(served)
    }

    fn discard(&mut self, room: &Room<'_>) -> Result<(), Trouble> {
        let copies = (1..=self.cuts).map(|number| self.copy_name(number));
        let all: Vec<PathBuf> = copies.chain([self.home()]).filter(|path| path.exists()).collect();
        self.cuts = 0;
        for path in all {
            let path = text_of(&path);
            match self.kind {
                Kind::Xfs => room.run(&["rm", "-r", &path])?,
                Kind::Btrfs => room.run(&["btrfs", "subvolume", "delete", "--commit-after", &path])?,
            };
        }
        Ok(())
    }
}

/// Writes the whole disk, over NBD as for all: the size of the writes decides in which pieces the page cache holds a
/// file, and that decides what a small write to it costs.
pub(super) fn filled(room: &Room<'_>, served: Served) -> Result<Served, Trouble> {
    room.fio().fill(&served.uri)?;
    Ok(served)
}

pub(super) fn remove(file: &Path) -> Result<(), Trouble> {
    fs::remove_file(file).or_trouble(|| format!("remove {}", file.display()), NEXT_DIR)
}
