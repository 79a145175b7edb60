//! Opens a file or block device for serving, and finds out what it can do.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, ioctl_blksszget, statx};

use crate::export::ExportInfo;
use crate::file_export::{FileExport, FileGeometry};
use crate::reactor::{ExportSpec, OpenFile};

/// How long a lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// How the file's data are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMode {
    /// Through the page cache; durable at FLUSH and FUA.
    Writeback,
    /// Past the page cache (O_DIRECT); durable at FLUSH and FUA too, for the medium has a cache of its own.
    Direct,
}

/// What to open and how.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// The file or block device.
    pub path: PathBuf,
    /// The export's name.
    pub name: String,
    /// Refuse writes.
    pub read_only: bool,
    /// See [`CacheMode`].
    pub cache: CacheMode,
    /// Tell clients that the medium spins.
    pub rotational: bool,
}

/// Why an image cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file.
    #[error("{0} does not exist")]
    NotFound(PathBuf),
    /// Neither a regular file nor a block device.
    #[error("{0} is neither a file nor a block device")]
    NotADisk(PathBuf),
    /// The user may not open it that way.
    #[error("{0} may not be opened {1}")]
    Denied(PathBuf, &'static str),
    /// Somebody holds the lock.
    #[error("{0} is in use by another process")]
    Locked(PathBuf),
    /// The file system has no direct I/O.
    #[error("{0} lies on a file system without direct I/O")]
    NoDirect(PathBuf),
    /// Direct I/O cannot reach the tail.
    #[error("the size of {path}, {size} bytes, is not a multiple of {align}")]
    OddSize {
        /// Which file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The medium's unit of direct I/O in bytes.
        align: u32,
    },
    /// Anything else the system said.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// An open image, ready for a reactor.
pub struct Image {
    /// What clients are told.
    pub info: ExportInfo,
    /// Its files and how to build its state machine.
    pub spec: ExportSpec,
}

/// Opens an image and locks it: exclusively for writing, shared for reading.
///
/// # Errors
/// See [`OpenError`]; nothing is left open or locked.
pub fn open_image(options: &ImageOptions) -> Result<Image, OpenError> {
    let path = &options.path;
    let fail = |error| OpenError::Io(path.clone(), error);
    let direct = options.cache == CacheMode::Direct;
    let mut file = open(path, options.read_only, direct)?;
    let kind = file.metadata().map_err(fail)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(OpenError::NotADisk(path.clone()));
    }
    lock(&file, path, options.read_only)?;
    let size = file.seek(SeekFrom::End(0)).map_err(fail)?;
    let transfer_align = if direct { direct_align(&file, size) } else { 1 };
    if !size.is_multiple_of(u64::from(transfer_align)) {
        return Err(OpenError::OddSize { path: path.clone(), size, align: transfer_align });
    }
    let zero_align = if kind.is_block_device() {
        ioctl_blksszget(&file).map_err(|error| fail(error.into()))?.max(transfer_align)
    } else {
        transfer_align
    };
    let geometry = FileGeometry { size, transfer_align, zero_align };
    let info = ExportInfo {
        read_only: options.read_only,
        rotational: options.rotational,
        fast_zero: true,
        tells_allocation: true,
        description: describe(options),
        ..ExportInfo::new(&options.name, size)
    };
    let spec = ExportSpec {
        files: vec![OpenFile { file, direct }],
        build: Box::new(move |files| Box::new(FileExport::new(files[0], geometry))),
    };
    Ok(Image { info, spec })
}

/// Only the file's own name: where it lies is nobody's business on the other side of a socket.
fn describe(options: &ImageOptions) -> String {
    options.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn open(path: &Path, read_only: bool, direct: bool) -> Result<File, OpenError> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    // O_NONBLOCK so that a FIFO given by mistake cannot hang us.
    let flags = flags | libc::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path);
    opened.and_then(blocking).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => OpenError::NotFound(path.to_owned()),
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            OpenError::Denied(path.to_owned(), if read_only { "for reading" } else { "for writing" })
        }
        Some(libc::EISDIR | libc::ENXIO) => OpenError::NotADisk(path.to_owned()),
        // Opening a directory for direct reading fails with the same error.
        Some(libc::EINVAL) if path.is_dir() => OpenError::NotADisk(path.to_owned()),
        Some(libc::EINVAL) if direct => OpenError::NoDirect(path.to_owned()),
        _ => OpenError::Io(path.to_owned(), error),
    })
}

/// On file systems without non-blocking reads the ring takes O_NONBLOCK at its word and fails with EAGAIN.
fn blocking(file: File) -> io::Result<File> {
    let flags = fcntl_getfl(&file)?;
    fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

/// Two servers writing one image would corrupt it in silence.
///
/// A lock that is held is tried for a while: the kernel takes the ring of a server that has just ended
/// down some milliseconds after its process is gone, and the registered files with it. Without the
/// patience a restart would fail now and then.
#[expect(clippy::disallowed_methods, reason = "opening a file happens before anything is served")]
fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), OpenError> {
    let patience = Instant::now() + LOCK_PATIENCE;
    loop {
        match if read_only { file.try_lock_shared() } else { file.try_lock() } {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(OpenError::Io(path.to_owned(), error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= patience => {
                return Err(OpenError::Locked(path.to_owned()));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PATIENCE / 50),
        }
    }
}

/// The unit of direct I/O: what the kernel says (Linux 6.1 and later), else the size's own: 4096 if it
/// fits, for that suits every medium, and 512 if it does not.
fn direct_align(file: &File, size: u64) -> u32 {
    const STATX_DIOALIGN: u32 = 0x2000;
    let wanted = StatxFlags::from_bits_retain(STATX_DIOALIGN);
    let told = statx(file, c"", AtFlags::EMPTY_PATH, wanted).ok();
    let told =
        told.filter(|st| st.stx_mask & STATX_DIOALIGN != 0 && st.stx_dio_offset_align.is_power_of_two());
    told.map_or(if size.is_multiple_of(4096) { 4096 } else { 512 }, |st| st.stx_dio_offset_align)
}
