//! What the daemon is told: flags, environment and one TOML file, in that order of precedence, then defaults.
//!
//! Every key of the file is a flag of `blockd serve` under the same name, with `-` for `_`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use nbd_server::image::CacheMode;
use rustix::fs::statvfs;
use serde::Deserialize;

use crate::control::is_valid_name;
use crate::exit_code;
use crate::failure::Failure;
use crate::jobs::files::{JOBS_FILE, STATE_DIRECTORY};
use crate::jobs::job::Job;
use crate::jobs::keep::Keep;
use crate::jobs::sections::{self, JobSection};
use crate::nbd_door::{AccessRule, LimitSettings, NbdLimits, RULES_MAX, is_host_name};
use crate::peer::PEER_DIRECTORY;
use crate::size::Size;

/// Where clients find the daemon unless told otherwise.
pub const SOCKET_DEFAULT: &str = "/run/blockd/blockd.sock";
/// Where NBD clients find it.
const NBD_UNIX_DEFAULT: &str = "/run/blockd/nbd.sock";
/// Where this host's agent is found.
const AGENT_SOCKET_DEFAULT: &str = "/run/vmctl/peer.sock";
/// Part of the free space that a new pool takes by default: the rest is for metadata and other users of the file
/// system.
const POOL_PERCENT_DEFAULT: u64 = 80;
/// A look back at some hours, days and weeks, whatever becomes of the source.
const REPLICA_KEEP_DEFAULT: Keep = Keep { hourly: 24, daily: 7, weekly: 4, ..Keep::DEFAULT };
/// Smallest pool: a superblock and some room to work.
const POOL_BYTES_MIN: u64 = 16 << 20;
/// Longest configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How the pool is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// Through the page cache.
    Writeback,
    /// Past the page cache (O_DIRECT).
    Direct,
}

impl From<Cache> for CacheMode {
    fn from(cache: Cache) -> Self {
        match cache {
            Cache::Writeback => Self::Writeback,
            Cache::Direct => Self::Direct,
        }
    }
}

/// Where changes are kept until they are durable, for the case that the daemon is killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recent {
    /// In memory, if there is a place.
    Default,
    /// In that directory.
    In(PathBuf),
    /// Nowhere.
    Off,
}

/// A data file of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolFile {
    /// Absolute, or relative to the data directory.
    pub path: PathBuf,
    /// Its size; missing for a block device: all of it.
    pub size: Option<Size>,
}

/// Settings as they were given, each perhaps not: the flags of `serve`, and the keys of the file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Directory of the store; made if it does not exist.
    #[arg(long, value_name = "DIR", env = "BLOCKD_DATA")]
    pub data: Option<PathBuf>,

    /// Socket for blockctl. Default: /run/blockd/blockd.sock.
    #[arg(long, value_name = "PATH", env = "BLOCKD_SOCKET")]
    pub socket: Option<PathBuf>,

    /// Group whose members may use blockctl. Default: only root and the daemon's own user.
    #[arg(long, value_name = "GROUP", env = "BLOCKD_SOCKET_GROUP")]
    pub socket_group: Option<String>,

    /// Socket for NBD clients. Default: /run/blockd/nbd.sock.
    #[arg(long, value_name = "PATH", env = "BLOCKD_NBD_UNIX")]
    pub nbd_unix: Option<PathBuf>,

    /// Group that may open the NBD socket, for example libvirt-qemu. Default: only root and the daemon's user.
    #[arg(long, value_name = "GROUP", env = "BLOCKD_NBD_GROUP")]
    pub nbd_group: Option<String>,

    /// Address for NBD clients: with TLS, for clients with a certificate (blockctl client create), unless insecure_tcp is
    /// set.
    #[arg(long, value_name = "ADDR:PORT", env = "BLOCKD_NBD_LISTEN")]
    pub nbd_listen: Option<SocketAddr>,

    /// NBD over TCP in clear, for whoever can reach it: on a trusted link only. Default: false.
    #[arg(long, value_name = "BOOL", env = "BLOCKD_INSECURE_TCP", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure_tcp: Option<bool>,

    /// Names and addresses that NBD clients may reach this host under, besides its own name, the address it listens at and
    /// localhost: its certificate is good for them.
    #[arg(long, value_name = "NAME", env = "BLOCKD_NBD_TLS_NAMES", value_delimiter = ',')]
    pub nbd_tls_names: Vec<String>,

    /// Directory with other certificates for NBD over TCP than this host's own: server-cert.pem, server-key.pem,
    /// ca-cert.pem (whose clients are let in), perhaps ca-crl.pem. Replaced files are used for new clients.
    #[arg(long, value_name = "DIR", env = "BLOCKD_NBD_TLS_DIR")]
    pub nbd_tls_dir: Option<PathBuf>,

    /// Who may see which exports over TCP: `[[nbd_access]]` with identity, exports, mode; the first that fits decides. Only in
    /// the file. Default: clients with a certificate may write to all, paired hosts see nothing.
    #[arg(skip)]
    pub nbd_access: Vec<AccessRule>,

    /// Bounds of NBD clients: connections_per_client, handshake_time, options, option_bytes, requests, payload_bytes,
    /// stall_time. Only in the file. Defaults: docs/operating.md; in force: blockctl status.
    #[arg(skip)]
    pub nbd_limits: LimitSettings,

    /// Address where paired hosts connect, always with TLS. Default: none; this host can still connect to others.
    #[arg(long, value_name = "ADDR:PORT", env = "BLOCKD_PEER_LISTEN")]
    pub peer_listen: Option<SocketAddr>,

    /// Socket of this host's agent (vmctl agent), which other hosts' agents are led to. Default: /run/vmctl/peer.sock.
    #[arg(long, value_name = "PATH", env = "BLOCKD_AGENT_SOCKET")]
    pub agent_socket: Option<PathBuf>,

    /// How the pool is cached. Default: writeback.
    #[arg(long, value_enum, env = "BLOCKD_CACHE")]
    pub cache: Option<Cache>,

    /// This host's name, for people and peers. Default: the system's.
    #[arg(long, value_name = "HOST", env = "BLOCKD_NAME")]
    pub name: Option<String>,

    /// Size of a new pool. Default: 80 % of what is free in the file system.
    #[arg(long, value_name = "SIZE", env = "BLOCKD_POOL_SIZE")]
    pub pool_size: Option<Size>,

    /// Directory, best in memory, where a daemon that is killed leaves what was not flushed to the next one; "none":
    /// nowhere. Default: /run/blockd-recent for root, else one in /dev/shm.
    #[arg(long, value_name = "DIR", env = "BLOCKD_RECENT_DIR")]
    pub recent_dir: Option<PathBuf>,

    /// Keep trees of hashes in the data directory, 0.05 % of the data: the hash of a snapshot then costs what has changed
    /// since the last. Default: true.
    #[arg(long, value_name = "BOOL", env = "BLOCKD_HASH_CACHE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub hash_cache: Option<bool>,

    /// NBD connections at once. Default: 1000.
    #[arg(long, value_name = "N", env = "BLOCKD_CONNECTIONS_MAX")]
    pub connections_max: Option<u32>,

    /// Connections of blockctl and other API clients at once. Default: 64.
    #[arg(long, value_name = "N", env = "BLOCKD_API_CONNECTIONS_MAX")]
    pub api_connections_max: Option<u32>,

    /// Log filter, for example "debug" or "blockd=trace". Default: info.
    #[arg(long, env = "BLOCKD_LOG")]
    pub log: Option<String>,

    /// Data files of the pool, instead of one in the data directory. Only in the file.
    #[arg(skip)]
    pub pool: Vec<PoolFile>,

    /// Which snapshots of jobs replicas keep here, whatever their source would like: { last = 3, hourly = 24 }. Only in
    /// the file. Default: last 3, hourly 24, daily 7, weekly 4.
    #[arg(skip)]
    pub replica_keep: Option<Keep>,

    /// What several jobs have in common. Only in the file.
    #[arg(skip)]
    pub template: BTreeMap<String, JobSection>,

    /// Jobs of one volume each, by its name. Only in the file.
    #[arg(skip)]
    pub volume: BTreeMap<String, JobSection>,

    /// Jobs of several volumes, by their own names. Only in the file.
    #[arg(skip)]
    pub job: BTreeMap<String, JobSection>,
}

/// What holds, after defaults and checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory of the store.
    pub data: PathBuf,
    /// Socket of the API.
    pub socket: PathBuf,
    /// Group whose members may use the API.
    pub socket_group: Option<String>,
    /// Socket for NBD clients.
    pub nbd_unix: PathBuf,
    /// Group that may open the NBD socket.
    pub nbd_group: Option<String>,
    /// Address for NBD clients.
    pub nbd_listen: Option<SocketAddr>,
    /// NBD over TCP in clear.
    pub insecure_tcp: bool,
    /// Names that this host's certificate for NBD clients is good for, besides the usual.
    pub nbd_tls_names: Vec<String>,
    /// Other certificates for NBD clients.
    pub nbd_tls_dir: Option<PathBuf>,
    /// Who may see which exports.
    pub nbd_access: Vec<AccessRule>,
    /// Bounds of NBD clients.
    pub nbd_limits: NbdLimits,
    /// Address where paired hosts connect.
    pub peer_listen: Option<SocketAddr>,
    /// Socket of this host's agent.
    pub agent_socket: PathBuf,
    /// How the pool is cached.
    pub cache: Cache,
    /// This host's name.
    pub name: String,
    /// Data files of the pool; empty: one in the data directory.
    pub pool: Vec<PoolFile>,
    /// Size of a new pool, if one was given.
    pub pool_size: Option<Size>,
    /// Where changes are kept until they are durable.
    pub recent: Recent,
    /// Whether trees of hashes are kept.
    pub hash_cache: bool,
    /// API connections at once.
    pub api_connections_max: u32,
    /// Log filter.
    pub log: String,
    /// What replicas keep.
    pub replica_keep: Keep,
    /// Jobs of the file.
    pub jobs: Vec<Job>,
}

/// Why a configuration is refused: place, key and reason.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct ConfigError {
    /// `FILE:LINE: key`, a path, or the name of a flag.
    pub place: String,
    /// Why.
    pub reason: String,
}

impl ConfigError {
    fn new(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { place: place.into(), reason: reason.into() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(
            exit_code::USAGE,
            "the configuration is refused",
            error,
            "blockd check-config FILE    (blockd serve --help explains every key)",
        )
    }
}

/// Reads and checks a file by itself, as `check-config` does.
///
/// # Errors
/// See [`ConfigError`].
pub fn check_file(path: &Path) -> Result<Config, ConfigError> {
    load(Settings::default(), Some(path))
}

/// Flags and environment over the file over the defaults, checked.
///
/// # Errors
/// See [`ConfigError`].
pub fn load(given: Settings, file: Option<&Path>) -> Result<Config, ConfigError> {
    let text = file.map(read_file).transpose()?.unwrap_or_default();
    let from_file = match file {
        Some(path) => toml::from_str(&text).map_err(|error| locate_error(path, &text, &error))?,
        None => Settings::default(),
    };
    let locate = |key: &str| match (file, line_of(&text, key)) {
        (Some(path), Some(line)) => format!("{}:{line}: {key}", path.display()),
        _ => format!("{key} (--{})", key.replace('_', "-")),
    };
    finish(given.over(from_file), &locate)
}

impl Settings {
    /// These settings, and what they leave open from the others.
    fn over(self, other: Self) -> Self {
        Self {
            data: self.data.or(other.data),
            socket: self.socket.or(other.socket),
            socket_group: self.socket_group.or(other.socket_group),
            nbd_unix: self.nbd_unix.or(other.nbd_unix),
            nbd_group: self.nbd_group.or(other.nbd_group),
            nbd_listen: self.nbd_listen.or(other.nbd_listen),
            insecure_tcp: self.insecure_tcp.or(other.insecure_tcp),
            nbd_tls_names: match self.nbd_tls_names.is_empty() {
                true => other.nbd_tls_names,
                false => self.nbd_tls_names,
            },
            nbd_tls_dir: self.nbd_tls_dir.or(other.nbd_tls_dir),
            nbd_access: other.nbd_access,
            nbd_limits: other.nbd_limits,
            peer_listen: self.peer_listen.or(other.peer_listen),
            agent_socket: self.agent_socket.or(other.agent_socket),
            cache: self.cache.or(other.cache),
            name: self.name.or(other.name),
            pool_size: self.pool_size.or(other.pool_size),
            recent_dir: self.recent_dir.or(other.recent_dir),
            hash_cache: self.hash_cache.or(other.hash_cache),
            connections_max: self.connections_max.or(other.connections_max),
            api_connections_max: self.api_connections_max.or(other.api_connections_max),
            log: self.log.or(other.log),
            replica_keep: self.replica_keep.or(other.replica_keep),
            pool: if self.pool.is_empty() { other.pool } else { self.pool },
            template: other.template,
            volume: other.volume,
            job: other.job,
        }
    }
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |error: io::Error| ConfigError::new(path.display().to_string(), error.to_string());
    if fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(ConfigError::new(path.display().to_string(), "is no configuration: more than 1 MiB"));
    }
    fs::read_to_string(path).map_err(unreadable)
}

/// Where a key stands in the file, if it does; lines count from 1.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let is_key = |line: &str| {
        // The names of sections may stand in quotes.
        let name = line.trim_start().trim_start_matches('[').replace(['"', '\''], "");
        name.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', ']']))
    };
    text.lines().position(is_key).map(|index| index + 1)
}

/// `FILE:LINE: key`, from where the parser stumbled.
fn locate_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = text.get(..at).unwrap_or_default();
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default();
    let key = line.split(['=', '#']).next().unwrap_or_default().trim();
    let place = if key.is_empty() { String::new() } else { format!(": {key}") };
    let reason = error.message().lines().collect::<Vec<_>>().join(", ");
    ConfigError::new(format!("{}:{number}{place}", path.display()), reason)
}

/// Rules that fit nobody, and names that no certificate can have.
fn check_access(
    rules: &[AccessRule],
    names: &[String],
    locate: &dyn Fn(&str) -> String,
) -> Result<(), ConfigError> {
    if rules.len() > RULES_MAX {
        return Err(ConfigError::new(locate("nbd_access"), format!("has more than {RULES_MAX} rules")));
    }
    for rule in rules {
        rule.check().map_err(|why| ConfigError::new(locate("nbd_access"), why))?;
    }
    match names.iter().find(|name| !is_host_name(name)) {
        Some(name) => Err(ConfigError::new(locate("nbd_tls_names"), format!("{name:?} is no host's name"))),
        None => Ok(()),
    }
}

fn finish(settings: Settings, locate: &dyn Fn(&str) -> String) -> Result<Config, ConfigError> {
    let refuse = |key: &str, reason: &str| Err(ConfigError::new(locate(key), reason));
    let Some(data) = settings.data else { return refuse("data", "is missing: where is the store?") };
    let insecure_tcp = settings.insecure_tcp.unwrap_or(false);
    if insecure_tcp && settings.nbd_tls_dir.is_some() {
        return refuse("insecure_tcp", "contradicts nbd_tls_dir: is TCP in clear, or not?");
    }
    if insecure_tcp && !settings.nbd_access.is_empty() {
        return refuse("insecure_tcp", "contradicts nbd_access: in clear nobody can be told from another");
    }
    check_access(&settings.nbd_access, &settings.nbd_tls_names, locate)?;
    let nbd_limits = NbdLimits::of(&settings.nbd_limits, settings.connections_max)
        .map_err(|(key, why)| ConfigError::new(locate(key), why))?;
    let name = settings.name.unwrap_or_else(host_name);
    if !is_valid_name(&name) {
        return refuse("name", "must be 1 to 255 of A-Z a-z 0-9 . _ -, not beginning with . or -");
    }
    check_pool(&settings.pool, settings.pool_size, locate)?;
    let recent = match settings.recent_dir {
        None => Recent::Default,
        Some(path) if path == Path::new("none") => Recent::Off,
        Some(path) if path.is_absolute() => Recent::In(path),
        Some(_) => return refuse("recent_dir", "is neither an absolute path nor \"none\""),
    };
    let replica_keep = settings.replica_keep.unwrap_or(REPLICA_KEEP_DEFAULT);
    replica_keep.check().map_err(|why| ConfigError::new(locate("replica_keep"), why))?;
    let jobs = sections::jobs(&settings.template, &settings.volume, &settings.job)
        .map_err(|(key, why)| ConfigError::new(locate(&key), why))?;
    let config = Config {
        data,
        socket: settings.socket.unwrap_or_else(|| SOCKET_DEFAULT.into()),
        socket_group: settings.socket_group,
        nbd_unix: settings.nbd_unix.unwrap_or_else(|| NBD_UNIX_DEFAULT.into()),
        nbd_group: settings.nbd_group,
        nbd_listen: settings.nbd_listen,
        insecure_tcp,
        nbd_tls_names: settings.nbd_tls_names,
        nbd_tls_dir: settings.nbd_tls_dir,
        nbd_access: settings.nbd_access,
        nbd_limits,
        peer_listen: settings.peer_listen,
        agent_socket: settings.agent_socket.unwrap_or_else(|| AGENT_SOCKET_DEFAULT.into()),
        cache: settings.cache.unwrap_or(Cache::Writeback),
        name,
        pool: settings.pool,
        pool_size: settings.pool_size,
        recent,
        hash_cache: settings.hash_cache.unwrap_or(true),
        api_connections_max: settings.api_connections_max.unwrap_or(64),
        log: settings.log.unwrap_or_else(|| "info".to_owned()),
        replica_keep,
        jobs,
    };
    check_limits(&config, locate)?;
    check_places(&config)?;
    Ok(config)
}

fn check_limits(config: &Config, locate: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
    if config.socket == config.nbd_unix {
        return Err(ConfigError::new(locate("nbd_unix"), "is the same path as socket"));
    }
    if !(1..=100_000).contains(&config.api_connections_max) {
        return Err(ConfigError::new(locate("api_connections_max"), "must be 1 to 100000"));
    }
    Ok(())
}

fn check_pool(
    pool: &[PoolFile],
    size: Option<Size>,
    locate: &dyn Fn(&str) -> String,
) -> Result<(), ConfigError> {
    if size.is_some() && !pool.is_empty() {
        return Err(ConfigError::new(
            locate("pool_size"),
            "does not go together with pool: sizes stand there",
        ));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = pool.iter().find(|file| !seen.insert(&file.path)) {
        let reason = format!("names {} twice", twice.path.display());
        return Err(ConfigError::new(locate("pool"), reason));
    }
    let is_small = |size: &Size| size.0 < POOL_BYTES_MIN;
    let small_file = pool.iter().any(|file| file.size.as_ref().is_some_and(is_small));
    if small_file || size.as_ref().is_some_and(is_small) {
        let key = if small_file { "pool" } else { "pool_size" };
        return Err(ConfigError::new(locate(key), "a size is below 16 MiB"));
    }
    Ok(())
}

/// Refuses links in place of the store: whoever made one could have us write elsewhere.
fn check_places(config: &Config) -> Result<(), ConfigError> {
    refuse_symlink(&config.data)?;
    let own = ["lock", "mark", "pool-0", "meta", "checkpoint", "ballast", "hashes"];
    for name in own.into_iter().chain([JOBS_FILE, STATE_DIRECTORY, PEER_DIRECTORY]) {
        refuse_symlink(&config.data.join(name))?;
    }
    for file in &config.pool {
        // A block device is often named by a link below /dev/disk, which only root can make.
        if !file.path.starts_with("/dev") {
            refuse_symlink(&config.data.join(&file.path))?;
        }
    }
    Ok(())
}

/// Refuses a path that is a symbolic link; what does not exist yet is fine.
///
/// # Errors
/// It is one.
pub fn refuse_symlink(path: &Path) -> Result<(), ConfigError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_symlink() => Err(ConfigError::new(
            path.display().to_string(),
            "is a symbolic link; name the directory or file itself",
        )),
        _ => Ok(()),
    }
}

fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if is_valid_name(name) { name.to_owned() } else { "blockd".to_owned() }
}

impl Config {
    /// The pool's files as a new store makes them, with their sizes.
    ///
    /// # Errors
    /// The file system cannot be asked for its free space.
    pub fn pool_files(&self) -> io::Result<Vec<PoolFile>> {
        if !self.pool.is_empty() {
            return Ok(self.pool.clone());
        }
        let size = match self.pool_size {
            Some(size) => size,
            None => default_pool_size(&self.data)?,
        };
        Ok(vec![PoolFile { path: "pool-0".into(), size: Some(size) }])
    }
}

/// A part of what is free where the data directory lies, or will lie; whole MiB.
fn default_pool_size(data: &Path) -> io::Result<Size> {
    let absolute = std::path::absolute(data)?;
    let existing = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = statvfs(existing)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let bytes = free / 100 * POOL_PERCENT_DEFAULT;
    Ok(Size((bytes >> 20 << 20).max(POOL_BYTES_MIN)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn check(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b.toml");
        fs::write(&file, text).unwrap();
        check_file(&file).map_err(|error| ConfigError {
            place: error.place.replace(&format!("{}/", dir.path().display()), ""),
            reason: error.reason,
        })
    }

    fn refusal(text: &str) -> String {
        check(text).unwrap_err().to_string()
    }

    #[test]
    fn a_short_file_and_its_defaults() {
        let config = check("data = '/nonexistent/store'\npool_size = '64GiB'\n").unwrap();
        assert_eq!(config.socket, Path::new(SOCKET_DEFAULT));
        assert_eq!(config.cache, Cache::Writeback);
        let pool = config.pool_files().unwrap();
        assert_eq!(pool, [PoolFile { path: "pool-0".into(), size: Some(Size(64 << 30)) }]);
    }

    #[test]
    fn errors_name_file_line_key_and_reason() {
        let unknown = refusal("data = '/x'\n\nsokcet = '/y'\n");
        assert!(unknown.starts_with("b.toml:3: sokcet: unknown field `sokcet`"), "{unknown}");
        let size = refusal("data = '/x'\npool_size = '8 parsecs'\n");
        assert!(size.starts_with("b.toml:2: pool_size: \"8 parsecs\" is no size"), "{size}");
        let twice = refusal("data = '/x'\ndata = '/y'\n");
        assert!(twice.starts_with("b.toml:2: data: duplicate key"), "{twice}");
        let pool = refusal("data = '/x'\n[[pool]]\npath = '/y'\nsise = 4\n");
        assert!(pool.starts_with("b.toml:4: sise: unknown field"), "{pool}");
        assert_eq!(refusal("cache = 'direct'\n"), "data (--data): is missing: where is the store?");
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let tcp = refusal("data = '/x'\ninsecure_tcp = true\nnbd_tls_dir = '/c'\n");
        assert!(tcp.starts_with("b.toml:2: insecure_tcp: contradicts nbd_tls_dir"), "{tcp}");
        let rule = "[[nbd_access]]\nidentity = 'a'\nexports = ['*']\nmode = 'read'\n";
        assert!(check(&format!("data = '/x'\n{rule}")).is_ok());
        let tcp = refusal(&format!("data = '/x'\ninsecure_tcp = true\n{rule}"));
        assert!(tcp.contains("contradicts nbd_access"), "{tcp}");
        let tcp = refusal(&format!("data = '/x'\n{}", rule.replace("'a'", "'user:a'")));
        assert!(tcp.starts_with("b.toml:2: nbd_access: identity \"user:a\""), "{tcp}");
        assert!(refusal(&format!("data = '/x'\n{}", rule.replace("read", "own"))).contains("b.toml:5"));
        assert!(refusal("data = '/x'\nnbd_tls_names = ['a b']\n").contains("is no host's name"));
        assert!(check("data = '/x'\nnbd_listen = '127.0.0.1:10809'\ninsecure_tcp = true\n").is_ok());
        assert!(refusal("data = '/x'\nname = '../x'\n").contains("name: must be"));
        assert!(refusal("data = '/x'\npool_size = 4096\n").contains("below 16 MiB"));
        let pool = "[[pool]]\npath = 'a'\nsize = '1G'\n";
        assert!(refusal(&format!("data = '/x'\n{pool}{pool}")).starts_with("b.toml:2: pool: names a twice"));
        assert!(refusal(&format!("data = '/x'\npool_size = '1G'\n{pool}")).contains("together"));
        assert!(refusal("data = '/x'\nconnections_max = 0\n").contains("1 to 100000"));
    }

    #[test]
    fn links_in_place_of_the_store_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        let load_data =
            |data: &Path| load(Settings { data: Some(data.to_owned()), ..Settings::default() }, None);
        assert!(load_data(&real).is_ok());
        assert!(load_data(&link).unwrap_err().reason.contains("symbolic link"));
        symlink("/etc/passwd", real.join("mark")).unwrap();
        assert!(load_data(&real).unwrap_err().place.ends_with("real/mark"));
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b.toml");
        fs::write(&file, "data = '/from-file'\ncache = 'direct'\n").unwrap();
        let given = Settings { data: Some("/from-flag".into()), ..Settings::default() };
        let config = load(given, Some(&file)).unwrap();
        assert_eq!((config.data.as_path(), config.cache), (Path::new("/from-flag"), Cache::Direct));
    }
}
