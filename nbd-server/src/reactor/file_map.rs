//! A file's bytes as memory, for reading only.
//!
//! Nothing of the reactor needs it: it is here because mapping a file is `unsafe`, and this is the room for that.

use std::fs::File;
use std::io;
use std::ops::Deref;

use memmap2::Mmap;

/// A file that is mapped, for reading only, until this is dropped.
#[derive(Debug)]
pub struct FileMap(Mmap);

impl FileMap {
    /// Maps all of a file that nobody changes in place while it is mapped: our own, under a lock that the caller holds,
    /// and replaced by renaming another one over its name, never written or cut in place.
    ///
    /// # Errors
    /// The file cannot be mapped.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: needed because another process could change the bytes under a `&[u8]`, or cut the file, which turns a
        // read into SIGBUS. The mapping is private and read-only, so we change nothing through it. Only we write the file
        // that it is of, under the caller's lock, and only under another name before the file gets its own: the inode
        // that is mapped is never written again. Whoever gets past the lock into our directory can crash us, as he can by
        // killing us.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self(map))
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "maps a file")]
    fn a_file_is_its_bytes_even_when_its_name_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, b"bytes").unwrap();
        let map = FileMap::new(&File::open(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&*map, b"bytes");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(&*FileMap::new(&File::open(&path).unwrap()).unwrap(), b"");
    }
}
