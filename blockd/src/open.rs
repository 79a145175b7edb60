//! Makes a store in a data directory, and opens one that is there.
//!
//! **Making** takes several files that only together are a store. The file `creating` is there from before the first
//! of them until after the last: whatever a crash leaves beside it is removed and made again. Nothing that we did not
//! make is touched: a directory with other files in it is refused.
//!
//! **Opening** looks before it touches: catalog, mark and superblocks are checked with everything open for reading only,
//! so that a store that is refused stays as it was found.
//!
//! **Beginning.** Every opening makes a commit of its own, with what a killed daemon has left in the recent log. Its number
//! is behind all that the log can be for: so no part of a log that was left earlier, and was not found now, can be taken
//! for one that follows a later commit. What the intent log holds comes before it: it was durable.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_server::reactor::{OpenFile, give_back_freed_memory};

use crate::catalog::ballast::{BALLAST_FILE, Ballast};
use crate::catalog::format::{Change, FORMAT_VERSION, PoolFileRecord, StoreRecord};
use crate::catalog::load::{LoadError, Loaded, PoolUse, load};
use crate::catalog::mark::{Mark, MarkError};
use crate::catalog::meta::{MetaError, MetaStore};
use crate::catalog::open::{self as catalog, Opened};
use crate::catalog::rocks::{META_DIRECTORY, RESERVE_BYTES, RocksMeta};
use crate::checkpoint::file::{self as checkpoint, CheckpointError};
use crate::checkpoint::{Checkpoint, SavedMap};
use crate::config::{self, Cache, Config, Recent};
use crate::intents::area::{self, AreaError};
use crate::lock::{DataLock, LockError};
use crate::rebuild;
use crate::recent::{self, Origin, RecentFiles, Recovered};
use crate::store::superblock::{SUPERBLOCK_BYTES, Superblock, SuperblockError};
use crate::units::{CLUSTER_BYTES, LayerId, PoolCluster, SnapshotId, VolumeId};

/// There while a store is being made.
const CREATING: &str = "creating";
/// What a data directory may hold besides a store: no obstacle to making one.
const HARMLESS: [&str; 2] = ["lock", "lost+found"];
/// How long the ring of a daemon that has just been killed may hold the pool's files, and how often we look.
const POOL_LOCK_TIME_MAX: Duration = Duration::from_secs(10);
const POOL_LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Why a store cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// See [`LockError`].
    #[error(transparent)]
    Lock(#[from] LockError),
    /// See [`LoadError`].
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A pool file is missing, or is not what the catalog knows.
    #[error("pool file {0}: {1}")]
    Pool(PathBuf, String),
    /// There is something in the directory, but no store.
    #[error("{0} is not empty and holds no store: it has {1:?}")]
    Foreign(PathBuf, String),
    /// What was made durable beside the data cannot be read.
    #[error("{0}: {1}")]
    Intents(PathBuf, AreaError),
    /// What a killed daemon has left cannot be read.
    #[error("RECENT_DAMAGED: {0}: {1}")]
    Recent(PathBuf, String),
    /// The system said no.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

impl From<MetaError> for OpenError {
    fn from(error: MetaError) -> Self {
        Self::Load(error.into())
    }
}

impl From<MarkError> for OpenError {
    fn from(error: MarkError) -> Self {
        Self::Load(error.into())
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
    |error| OpenError::Io(what.into(), error)
}

/// An open store, nothing of it running yet.
pub struct OpenStore {
    /// Held until the store is closed.
    pub lock: DataLock,
    /// The catalog.
    pub loaded: Loaded,
    /// What of the pool is in use.
    pub in_use: PoolUse,
    /// Maps of volumes, as the last stop left them, or made of all map records; the others are read when they are
    /// asked for.
    pub maps: Vec<SavedMap>,
    /// The metadata.
    pub meta: Arc<RocksMeta>,
    /// The mark.
    pub mark: Mark,
    /// Space that commits may have on a full file system.
    pub ballast: Ballast,
    /// The pool's files in order, open for reading and writing.
    pub files: Vec<OpenFile>,
    /// The same files, open for reading through the page cache, and for mending what is damaged there.
    pub readers: Vec<File>,
    /// Where changes are kept until they are durable; `None`: nowhere.
    pub recent: Option<RecentFiles>,
    /// Commits may be written to the intent log.
    pub log_intents: bool,
    /// Free bytes of the file system that are kept for metadata.
    pub reserve_bytes: u64,
}

/// Opens the store of a configuration; makes it first if there is none.
///
/// # Errors
/// See [`OpenError`].
pub fn open(config: &Config) -> Result<OpenStore, OpenError> {
    let data = &config.data;
    make_directory(data)?;
    let lock = crate::lock::take(data)?;
    let reserve_bytes = reserve(data).map_err(failed("free space"))?;
    if data.join(CREATING).exists() || !data.join(META_DIRECTORY).exists() {
        create(config, reserve_bytes)?;
    }
    let seen = catalog::look(data)?;
    check_files(data, &seen.loaded)?;
    Ballast::make_room(data, reserve_bytes);
    // Half of it: the ballast, which is a whole one, must be worth a commit where nothing else is free.
    let mut opened = catalog::open(data, &seen, reserve_bytes / 2)?;
    let files = open_files(data, &opened.loaded, config.cache)?;
    let checkpoint = read_checkpoint(data, &opened.loaded);
    // Commits follow that it does not know.
    checkpoint::remove(data).map_err(failed(checkpoint::CHECKPOINT_FILE))?;
    let (recent, recovered) = begin(config, &mut opened, &files)?;
    let log_intents = clear_intents(data, &opened.loaded);
    let Opened { meta, mark, loaded } = opened;
    let checkpoint = checkpoint.filter(|_| recovered == 0);
    let Checkpoint { in_use, maps } = checkpoint.map_or_else(|| read_records(&meta, &loaded), Ok)?;
    meta.begin_merging();
    let readers = loaded.files.values().map(|record| {
        let path = data.join(&record.path);
        File::options().read(true).write(true).open(path)
    });
    let readers = readers.collect::<io::Result<_>>().map_err(failed("pool"))?;
    let ballast = Ballast::hold(data, reserve_bytes);
    let meta = Arc::new(meta);
    // What reading took lies between the maps' pages, and would stay: 2 MiB of a store of 1 TiB after a crash.
    give_back_freed_memory();
    Ok(OpenStore {
        lock,
        loaded,
        in_use,
        maps,
        meta,
        mark,
        ballast,
        files,
        readers,
        recent,
        log_intents,
        reserve_bytes,
    })
}

/// The commit that was begun took over what the log held. On a full disk there is no log: commits take longer.
fn clear_intents(data: &Path, loaded: &Loaded) -> bool {
    let cleared = area::clear(data, loaded);
    if let Err(error) = &cleared {
        tracing::warn!(%error, "no intent log: commits take longer");
    }
    cleared.is_ok()
}

/// Makes the first commit, with what the intent log holds and what a killed daemon has left, of which there are so many
/// changes. All that was ever written to the pool is durable already.
fn begin(
    config: &Config,
    opened: &mut Opened,
    files: &[OpenFile],
) -> Result<(Option<RecentFiles>, usize), OpenError> {
    let last = opened.loaded.commit;
    let mut recent = open_recent(config, opened.loaded.store.identity)?;
    let Recovered { changes, abandoned } = match &recent {
        Some(log) => log.recover(last).map_err(|error| OpenError::Recent(log.place(), error.to_string()))?,
        None => Recovered::default(),
    };
    if abandoned {
        forget_cached(files).map_err(failed("page cache of the pool"))?;
    }
    let intents = area::recover(&config.data, &opened.loaded)
        .map_err(|error| OpenError::Intents(config.data.clone(), error))?;
    if intents.frames > 0 || intents.unfinished {
        let (frames, unfinished) = (intents.frames, intents.unfinished);
        tracing::info!(frames, unfinished, "took over commits of the intent log");
    }
    // What was killed had told the recent log of everything: it comes last.
    let mut batch = intents.changes;
    batch.extend(changes);
    let recovered = batch.len();
    let first = last + recent::COMMITS_AHEAD;
    batch.push(Change::Commit(first));
    opened.meta.write(&batch)?;
    opened.mark.advance(first)?;
    if recovered > 0 {
        tracing::info!(changes = recovered, "took over what the last daemon had not committed");
        opened.loaded = load(&opened.meta, first)?;
    }
    opened.loaded.commit = first;
    if let Some(log) = &mut recent {
        log.clear().map_err(failed("recent log"))?;
    }
    Ok((recent, recovered))
}

/// Has the pool read from its medium. What a failed sync has marked clean reads as it was written until the page goes
/// for want of memory, and then as something older, which a FLUSH to us must not have covered.
fn forget_cached(files: &[OpenFile]) -> io::Result<()> {
    tracing::warn!("the last daemon has seen a sync or a commit fail: the pool is read from its medium");
    files
        .iter()
        .try_for_each(|open| Ok(rustix::fs::fadvise(&open.file, 0, None, rustix::fs::Advice::DontNeed)?))
}

/// The recent log, unless there is nowhere to keep it and nobody has asked for it.
fn open_recent(config: &Config, identity: [u8; 16]) -> Result<Option<RecentFiles>, OpenError> {
    let asked = match &config.recent {
        Recent::Off => return Ok(None),
        Recent::Default => None,
        Recent::In(directory) => Some(&**directory),
    };
    let opened =
        recent::directory(asked).and_then(|directory| RecentFiles::open(&directory, Origin::of(identity)?));
    match (opened, asked) {
        (Ok(recent), _) => Ok(Some(recent)),
        (Err(error), Some(asked)) => Err(OpenError::Io(asked.display().to_string(), error)),
        (Err(error), None) => {
            tracing::warn!(%error, "no recent log: a killed daemon loses what was not flushed");
            Ok(None)
        }
    }
}

/// Allocator and maps as the last stop left them.
fn read_checkpoint(data: &Path, loaded: &Loaded) -> Option<Checkpoint> {
    match checkpoint::read(data, loaded) {
        Ok(checkpoint) => {
            tracing::info!(
                commit = loaded.commit,
                maps = checkpoint.maps.len(),
                "started from the checkpoint"
            );
            return Some(checkpoint);
        }
        Err(CheckpointError::Missing) => tracing::info!("no checkpoint: all map records are read"),
        Err(error) => tracing::warn!(%error, "the checkpoint is not used: all map records are read"),
    }
    None
}

/// Allocator and maps as all map records say.
fn read_records(meta: &RocksMeta, loaded: &Loaded) -> Result<Checkpoint, OpenError> {
    let began = Instant::now();
    let read = rebuild::checkpoint(meta, loaded, rebuild::threads_at_start())?;
    let ms = began.elapsed().as_millis();
    tracing::info!(
        clusters = read.in_use.used_clusters(),
        maps = read.maps.len(),
        ms,
        "all map records are read"
    );
    Ok(read)
}

/// Whether the pool's files are what the catalog knows, with everything open for reading only.
fn check_files(data: &Path, loaded: &Loaded) -> Result<(), OpenError> {
    for (index, record) in &loaded.files {
        let path = data.join(&record.path);
        let bad = |reason: String| OpenError::Pool(path.clone(), reason);
        // A medium that cannot be read is another matter than a file that is not there, or not whole.
        let unread = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => bad(format!("POOL_MISMATCH: {error}")),
            _ => bad(error.to_string()),
        };
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        let mut file = File::open(&path).map_err(unread)?;
        file.read_exact(&mut bytes).map_err(unread)?;
        let expected = Superblock::of(loaded.store.identity, *index, record);
        expected.check(&bytes).map_err(|error: SuperblockError| bad(error.to_string()))?;
        let length = file.seek(SeekFrom::End(0)).map_err(|error| bad(error.to_string()))?;
        if length < u64::from(record.clusters) * CLUSTER_BYTES {
            return Err(bad(format!("POOL_MISMATCH: {length} bytes, {} clusters", record.clusters)));
        }
    }
    Ok(())
}

fn make_directory(data: &Path) -> Result<(), OpenError> {
    if !data.exists() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(data);
        made.map_err(failed(data.display().to_string()))?;
        if let Some(parent) = std::path::absolute(data).ok().as_deref().and_then(Path::parent) {
            sync_directory(parent)?;
        }
    }
    Ok(())
}

/// A part of the file system: what RocksDB may need at once, but no more than small file systems can spare.
fn reserve(data: &Path) -> io::Result<u64> {
    const PART: u64 = 16;
    let stat = rustix::fs::statvfs(data)?;
    let total = stat.f_blocks.saturating_mul(stat.f_frsize);
    Ok((total / PART).min(RESERVE_BYTES))
}

fn sync_directory(path: &Path) -> Result<(), OpenError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed(path.display().to_string()))
}

/// A pool file to be made.
struct NewFile {
    record: PoolFileRecord,
    file: File,
}

fn create(config: &Config, reserve_bytes: u64) -> Result<(), OpenError> {
    let data = &config.data;
    let wanted = config.pool_files().map_err(failed("size of the pool"))?;
    clear(data, &wanted)?;
    let marker = File::create(data.join(CREATING)).and_then(|file| file.sync_all());
    marker.map_err(failed(CREATING))?;
    sync_directory(data)?;
    let files = create_files(data, &wanted)?;
    let store = StoreRecord {
        version: FORMAT_VERSION,
        identity: new_identity().map_err(failed("random numbers"))?,
        next_volume: VolumeId(1),
        next_layer: LayerId(1),
        next_snapshot: SnapshotId(1),
        created_ms: crate::events::now_ms(),
    };
    for (index, new) in files.iter().enumerate() {
        write_superblock(&store, index, new)?;
    }
    let identity = store.identity;
    let mut batch = vec![Change::Store(store), Change::Commit(1)];
    batch.extend(
        files.into_iter().enumerate().map(|(index, new)| Change::PoolFile(index_of(index), new.record)),
    );
    catalog::create(data, identity, &batch, reserve_bytes / 2)?;
    sync_directory(data)?;
    fs::remove_file(data.join(CREATING)).map_err(failed(CREATING))?;
    sync_directory(data)
}

fn index_of(index: usize) -> u16 {
    u16::try_from(index).expect("a configuration file does not hold 2^16 pool files")
}

/// Removes what an earlier attempt has left; refuses what is not ours.
fn clear(data: &Path, wanted: &[config::PoolFile]) -> Result<(), OpenError> {
    let again = data.join(CREATING).exists();
    let in_directory = |name: &str| wanted.iter().any(|file| file.path == Path::new(name));
    for entry in fs::read_dir(data).map_err(failed(data.display().to_string()))? {
        let entry = entry.map_err(failed(data.display().to_string()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if HARMLESS.contains(&name.as_str()) || is_socket {
            continue;
        }
        let ours = ["mark", CREATING, META_DIRECTORY, BALLAST_FILE].contains(&&*name) || in_directory(&name);
        if !again || !ours {
            return Err(OpenError::Foreign(data.to_owned(), name));
        }
        let path = entry.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(failed(path.display().to_string()))?;
    }
    Ok(())
}

fn create_files(data: &Path, wanted: &[config::PoolFile]) -> Result<Vec<NewFile>, OpenError> {
    let mut first = 0u32;
    let mut files = Vec::new();
    for wanted in wanted {
        let path = data.join(&wanted.path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(failed(path.display().to_string()))?;
        let bytes = size_file(&mut file, wanted).map_err(failed(path.display().to_string()))?;
        let end = u64::from(first) + bytes / CLUSTER_BYTES;
        let Ok(end) = u32::try_from(end) else {
            return Err(OpenError::Pool(path, "a pool has at most 256 TiB".to_owned()));
        };
        let record = PoolFileRecord {
            first: PoolCluster(first),
            clusters: end - first,
            path: wanted.path.to_string_lossy().into_owned(),
        };
        files.push(NewFile { record, file });
        first = end;
    }
    Ok(files)
}

/// Gives a new pool file its size, sparse; a block device has its own. Whole clusters, bytes.
fn size_file(file: &mut File, wanted: &config::PoolFile) -> io::Result<u64> {
    let device = file.metadata()?.file_type().is_block_device();
    let length = file.seek(SeekFrom::End(0))?;
    let bytes = match wanted.size {
        Some(size) => size.0,
        None => length,
    };
    if !device && length > 0 && length != bytes {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "is there already, with another size"));
    }
    let bytes = bytes / CLUSTER_BYTES * CLUSTER_BYTES;
    if bytes < 2 * CLUSTER_BYTES || (device && bytes > length) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{bytes} bytes are no size for it")));
    }
    if !device {
        file.set_len(bytes)?;
    }
    Ok(bytes)
}

fn write_superblock(store: &StoreRecord, index: usize, new: &NewFile) -> Result<(), OpenError> {
    let superblock = Superblock::of(store.identity, index_of(index), &new.record);
    let mut file = &new.file;
    let written = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.write_all(&superblock.encode()))
        .and_then(|()| file.sync_all());
    written.map_err(failed(new.record.path.clone()))
}

fn new_identity() -> io::Result<[u8; 16]> {
    let mut identity = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut identity)?;
    Ok(identity)
}

/// Opens the pool's files, alone, with all that was ever written to them durable.
///
/// **Alone.** The kernel takes the ring of a killed daemon down some time after the process, and with it its writes in
/// flight and its locks on these files: until then they are not ours to write.
///
/// **Durable.** What a killed daemon wrote and did not sync is in the page cache, and we serve it. A client that was
/// answered before the kill and asks us for a FLUSH must have it durable, and we would find nothing to sync for it.
fn open_files(data: &Path, loaded: &Loaded, cache: Cache) -> Result<Vec<OpenFile>, OpenError> {
    let direct = cache == Cache::Direct;
    let open = |record: &PoolFileRecord| {
        let path = data.join(&record.path);
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
        let file = file.map_err(failed(path.display().to_string()))?;
        lock_pool_file(&file).map_err(|error| OpenError::Pool(path.clone(), format!("in use: {error}")))?;
        file.sync_data().map_err(failed(path.display().to_string()))?;
        Ok(OpenFile { file, direct })
    };
    loaded.files.values().map(open).collect()
}

fn lock_pool_file(file: &File) -> Result<(), TryLockError> {
    let deadline = Instant::now() + POOL_LOCK_TIME_MAX;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(POOL_LOCK_PAUSE);
            }
            result => return result,
        }
    }
}
