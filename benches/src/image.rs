//! The image all servers share: made once, completely written, and brought into the same state before each run.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::interrupt::Interrupt;
use crate::trouble::{OrTrouble, Trouble};

/// Bytes written or read at a time.
const CHUNK: usize = 1 << 20;
/// Bytes that must stay free beside the image.
const SPARE: u64 = 64 << 20;
/// Any odd number: the image's contents do not matter, only that no file system takes them for zeros.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// Whether the page cache could be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheDrop {
    /// It is empty now.
    Dropped,
    /// Only root may do that.
    NotAllowed,
}

/// The image file; removed with this value unless kept.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    bytes: u64,
    keep: bool,
}

impl Image {
    /// Makes `dir` and in it the image, `bytes` long.
    ///
    /// # Errors
    /// No space, no permission, or somebody asked to stop.
    pub fn create(dir: &Path, bytes: u64, keep: bool, interrupt: &Interrupt) -> Result<Self, Trouble> {
        fs::create_dir_all(dir).or_trouble(|| format!("make {}", dir.display()), NEXT_DIR)?;
        let dir = dir.canonicalize().or_trouble(|| format!("find {}", dir.display()), NEXT_DIR)?;
        let path = dir.join("compare.img");
        check_space(&dir, &path, bytes)?;
        let image = Self { path, bytes, keep };
        image.fill(interrupt)?;
        Ok(image)
    }

    /// Where it is, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes every byte anew, durably: no holes, no unwritten extents.
    ///
    /// # Errors
    /// Writing fails, or somebody asked to stop.
    pub fn fill(&self, interrupt: &Interrupt) -> Result<(), Trouble> {
        let what = || format!("write {}", self.path.display());
        let mut file = File::create(&self.path).or_trouble(what, NEXT_DIR)?;
        let mut chunk = vec![0; CHUNK];
        let mut state = SEED;
        let mut left = self.bytes;
        while left > 0 {
            interrupt.check()?;
            scramble(&mut chunk, &mut state);
            let now = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            file.write_all(&chunk[..now]).or_trouble(what, NEXT_DIR)?;
            left -= now as u64;
        }
        file.sync_all().or_trouble(what, NEXT_DIR)
    }
}

/// Writes back what is dirty and reads a file, so that all of it is in the page cache.
///
/// # Errors
/// Reading fails.
pub fn warm(path: &Path) -> Result<(), Trouble> {
    rustix::fs::sync();
    let what = || format!("read {}", path.display());
    let mut file = File::open(path).or_trouble(what, NEXT_DIR)?;
    let mut chunk = vec![0; CHUNK];
    while file.read(&mut chunk).or_trouble(what, NEXT_DIR)? > 0 {}
    Ok(())
}

/// Writes back what is dirty and drops the page cache, of all files.
///
/// # Errors
/// The kernel refuses for another reason than missing rights.
pub fn drop_caches() -> Result<CacheDrop, Trouble> {
    rustix::fs::sync();
    match fs::write("/proc/sys/vm/drop_caches", "3\n") {
        Ok(()) => Ok(CacheDrop::Dropped),
        Err(error) if is_refusal(&error) => Ok(CacheDrop::NotAllowed),
        Err(error) => Err(Trouble::new("drop the page cache", error, "mount /proc")),
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("kept: {}", self.path.display());
        } else if let Err(error) = fs::remove_file(&self.path) {
            eprintln!("left behind: {}: {error}", self.path.display());
        }
    }
}

const NEXT_DIR: &str = "choose another place with --dir, or a smaller --image-size";

/// A container may have `/proc/sys` mounted read-only: for us the same as missing rights.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn check_space(dir: &Path, image: &Path, bytes: u64) -> Result<(), Trouble> {
    let what = || "make room for the image".to_owned();
    let room = rustix::fs::statvfs(dir).or_trouble(what, NEXT_DIR)?;
    // One left over from an earlier run is overwritten, so its space counts as free.
    let reused = fs::metadata(image).map_or(0, |old| old.len());
    let free = room.f_bavail * room.f_frsize + reused;
    if free < bytes + SPARE {
        let why = format!("{} MiB free, {} needed", free >> 20, (bytes + SPARE) >> 20);
        return Err(Trouble::new(what(), why, NEXT_DIR));
    }
    Ok(())
}

/// Fills `chunk` with the next pseudo-random bytes. Formula: Marsaglia, "Xorshift RNGs", 64 bits, 13 7 17.
fn scramble(chunk: &mut [u8], state: &mut u64) {
    for word in chunk.chunks_exact_mut(8) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn an_image_is_written_through_and_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = 3 * CHUNK as u64;
        let image = Image::create(dir.path(), bytes, false, &Interrupt::default()).unwrap();
        let path = image.path().to_owned();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), bytes);
        assert!(metadata.blocks() * 512 >= bytes, "sparse: {} blocks", metadata.blocks());
        drop(image);
        assert!(!path.exists());
    }

    #[test]
    fn no_block_is_zero_and_no_two_are_equal() {
        let (mut first, mut second, mut state) = (vec![0; 4096], vec![0; 4096], SEED);
        scramble(&mut first, &mut state);
        scramble(&mut second, &mut state);
        assert_ne!(first, second);
        assert!(first.chunks(8).all(|word| word.iter().any(|byte| *byte != 0)));
    }

    #[test]
    fn more_than_the_disk_holds_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = Image::create(dir.path(), 1 << 60, false, &Interrupt::default()).unwrap_err();
        assert!(refused.next.contains("--image-size"));
    }
}
