//! A file system in a file, for peers that are file systems: XFS and btrfs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::room::{NEXT_DIR, Room, text_of};
use crate::trouble::{OrTrouble, Trouble};

/// Which file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// XFS, whose files share blocks by reflink.
    Xfs,
    /// btrfs, whose subvolumes have snapshots.
    Btrfs,
}

impl Kind {
    /// Its name for mount.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    fn mkfs(self, file: &str) -> Vec<&str> {
        match self {
            Self::Xfs => vec!["mkfs.xfs", "-q", "-m", "reflink=1", file],
            Self::Btrfs => vec!["mkfs.btrfs", "-q", file],
        }
    }
}

/// A mounted file system; unmounted and removed with this value.
#[derive(Debug)]
pub struct LoopFs {
    file: PathBuf,
    point: PathBuf,
}

impl LoopFs {
    /// Makes a file system of that size in a sparse file, and mounts it.
    ///
    /// The loop device goes past the page cache: else every block would be cached twice.
    ///
    /// # Errors
    /// A program is missing, or the kernel refuses: no such file system, no loop devices, no rights.
    pub fn make(room: &Room<'_>, kind: Kind, bytes: u64) -> Result<Self, Trouble> {
        let (file, point) = (room.new_image(kind.name()), room.new_image("mnt"));
        let made = File::create(&file).and_then(|file| file.set_len(bytes));
        made.and_then(|()| fs::create_dir(&point)).or_trouble(|| "make a file system".into(), NEXT_DIR)?;
        room.run(&kind.mkfs(&text_of(&file)))?;
        let device = room.run(&["losetup", "--find", "--show", "--direct-io=on", &text_of(&file)])?;
        let device = device.trim();
        let mounted = room.run(&["mount", "-t", kind.name(), device, &text_of(&point)]);
        // Of a mounted device this only says that it goes with the mount.
        let detached = room.run(&["losetup", "--detach", device]);
        mounted?;
        let made = Self { file, point };
        detached.map(|_| made)
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        // Not by `Room::run`, which does nothing any more after Ctrl-C.
        let unmounted = std::process::Command::new("umount").arg(&self.point).status();
        match unmounted {
            Ok(status) if status.success() => {}
            other => eprintln!("left behind: {} is still mounted ({other:?})", self.point.display()),
        }
        if let Err(error) = fs::remove_file(&self.file) {
            eprintln!("left behind: {}: {error}", self.file.display());
        }
    }
}
