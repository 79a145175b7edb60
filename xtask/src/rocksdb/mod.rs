//! RocksDB's C++, compiled once per host: optimised, without debug information, outside the target directory.
//!
//! Left to itself, cargo compiles RocksDB for every profile and every clone: 23 processor minutes each, and
//! an archive of a gigabyte where the profile wants debug information. Here one archive is kept in the user's
//! cache, together with the headers that the bindings are made of, and `.cargo/rocksdb.toml` tells every cargo
//! in this clone to take it, also one that is typed by hand.
//!
//! ```text
//! <cache>/blockd/rocksdb-<version>-<host>-<compiler>/lib/librocksdb.a    there as a whole or not at all
//!                                                   /include/rocksdb/…
//!               …same name….lock                      held by whoever compiles; never removed
//!               …same name….building-<process>/       their scratch; removed by them or by the next
//!               …same name….log                       what the compilers said, if they failed
//! ```
//!
//! This program must be built before any of that, so it must not depend on RocksDB, by whatever way.

mod compile;
mod configure;
mod install;

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fixtures::process::{self, check_interrupt};
use serde_json::Value;

use crate::progress::Progress;
use crate::workspace::Workspace;

pub(crate) use configure::VARIABLES;

/// The crate that carries RocksDB's sources and compiles them.
const CRATE: &str = "librocksdb-sys";

/// Names another directory than the user's cache.
const CACHE_VARIABLE: &str = "BLOCKD_BUILD_CACHE";

/// How often a long wait says how far it is.
const PULSE: Duration = Duration::from_secs(60);
/// How often we look whether another build has ended.
const LOOK: Duration = Duration::from_millis(300);

/// The RocksDB that the lock file names.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    version: String,
    /// Cargo's name for exactly this package.
    id: String,
    /// Where cargo unpacked it.
    dir: PathBuf,
    features: Vec<String>,
}

/// Where one compiled RocksDB is, or will be.
#[derive(Debug)]
struct Cached {
    dir: PathBuf,
}

/// Sees to it that RocksDB is compiled and that cargo knows where; returns its directory.
///
/// Needs the packages of `Purpose::Build`.
pub(crate) fn ensure(workspace: &Workspace, progress: &Progress) -> Result<PathBuf> {
    let host = host(workspace)?;
    let source = Source::find(&workspace.packages(&host)?)?;
    let cached = Cached { dir: cache_root()?.join(name(&source, &host, &compiler()?)) };
    if !cached.is_complete() {
        fill(workspace, &source, &cached, progress).context("cannot compile RocksDB")?;
    }
    configure::write(workspace, &cached)?;
    Ok(cached.dir)
}

/// Compiles into the cache, unless somebody else does so while we wait for them.
fn fill(workspace: &Workspace, source: &Source, cached: &Cached, progress: &Progress) -> Result<()> {
    let parent = cached.dir.parent().context("the cache has no parent directory")?;
    fs::create_dir_all(parent).with_context(|| {
        format!("cannot create {}; {CACHE_VARIABLE} can name another directory", parent.display())
    })?;
    let _lock = lock(&cached.beside("lock"), progress)?;
    if cached.is_complete() {
        return Ok(());
    }
    progress
        .say("compiling RocksDB's C++ once for all profiles and clones: about 14 minutes on 2 processors");
    let scratch = Scratch::create(&cached.beside("building"))?;
    let archive = compile::run(workspace, source, &scratch.0, &cached.beside("log"), progress)?;
    install::run(&archive, &source.include(), &scratch.0.join("staged"), cached)?;
    progress.say(&format!("RocksDB is in {}", cached.dir.display()));
    Ok(())
}

impl Source {
    /// Picks it from the answer of `cargo metadata`.
    fn find(metadata: &Value) -> Result<Self> {
        let package = find(&metadata["packages"], "name", CRATE)?;
        let node = find(&metadata["resolve"]["nodes"], "id", text(package, "id")?)?;
        let features = node["features"].as_array().into_iter().flatten();
        let manifest = Path::new(text(package, "manifest_path")?);
        Ok(Self {
            version: text(package, "version")?.to_owned(),
            id: text(package, "id")?.to_owned(),
            dir: manifest.parent().context("a manifest without a directory")?.to_owned(),
            features: features.filter_map(Value::as_str).map(str::to_owned).collect(),
        })
    }

    /// The headers, which the bindings are made of.
    fn include(&self) -> PathBuf {
        self.dir.join("rocksdb/include")
    }

    /// How many files are to be compiled, for people: zero where the crate no longer says so.
    fn files(&self) -> usize {
        fs::read_to_string(self.dir.join("rocksdb_lib_sources.txt")).map_or(0, |list| list.lines().count())
    }
}

impl Cached {
    fn archive(&self) -> PathBuf {
        self.dir.join("lib/librocksdb.a")
    }

    fn include(&self) -> PathBuf {
        self.dir.join("include")
    }

    /// Whether it is there; it comes as a whole, but people delete things.
    fn is_complete(&self) -> bool {
        self.archive().is_file() && self.include().join("rocksdb/c.h").is_file()
    }

    /// A file beside it, with its name and an ending of its own.
    fn beside(&self, ending: &str) -> PathBuf {
        let mut path = self.dir.clone().into_os_string();
        path.push(format!(".{ending}"));
        path.into()
    }
}

/// A directory that is removed when its owner ends.
struct Scratch(PathBuf);

impl Scratch {
    /// Makes one whose name begins with `stem`, and removes what killed owners left.
    ///
    /// The names differ because the compilers of a killed owner may still run for some seconds: they must not
    /// write where we do.
    fn create(stem: &Path) -> Result<Self> {
        sweep(stem)?;
        let dir = PathBuf::from(format!("{}-{}", stem.display(), std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self(dir))
    }
}

/// Removes every directory beside `stem` whose name begins like it. Only for the holder of the lock.
fn sweep(stem: &Path) -> Result<()> {
    let (parent, name) = (stem.parent().context("no parent")?, stem.file_name().context("no name")?);
    for entry in fs::read_dir(parent).with_context(|| format!("cannot read {}", parent.display()))? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(name.as_encoded_bytes()) {
            install::remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = install::remove_dir(&self.0) {
            eprintln!("{error:#}");
        }
    }
}

/// Waits until nobody else compiles the same; the lock ends with the file.
fn lock(path: &Path, progress: &Progress) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut said: Option<Instant> = None;
    while let Err(error) = file.try_lock() {
        if let TryLockError::Error(error) = error {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
        check_interrupt()?;
        if said.is_none_or(|time| time.elapsed() >= PULSE) {
            progress.say("another cargo xtask is compiling RocksDB; waiting for it");
            said = Some(Instant::now());
        }
        thread::sleep(LOOK);
    }
    Ok(file)
}

/// What one compiled library is good for: this RocksDB, this kind of host, this generation of the compiler and
/// with it of the C++ library.
fn name(source: &Source, host: &str, compiler: &str) -> String {
    // These two choose how the bindings are made and how other C libraries are linked, not what is compiled.
    let matters = |feature: &&String| !["bindgen-runtime", "static"].contains(&feature.as_str());
    let features: String =
        source.features.iter().filter(matters).map(|feature| format!("-{feature}")).collect();
    format!("rocksdb-{}-{host}-{compiler}{features}", source.version)
}

/// The host's triple, as the toolchain in use names it.
fn host(workspace: &Workspace) -> Result<String> {
    let answer = process::run(&mut workspace.cargo(&["-vV"]))?;
    let host = answer.stdout.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("cargo does not name its host")?.trim().to_owned())
}

/// The C++ compiler's generation, such as `c++12`.
fn compiler() -> Result<String> {
    let answer = process::run(process::command(compile::COMPILER).arg("-dumpversion"))?;
    let major = answer.stdout.trim().split('.').next().unwrap_or_default().to_owned();
    Ok(format!("{}{major}", compile::COMPILER))
}

fn cache_root() -> Result<PathBuf> {
    let root = choose_root(env::var_os(CACHE_VARIABLE), env::var_os("XDG_CACHE_HOME"), env::home_dir());
    let root = root.with_context(|| format!("no home directory; set {CACHE_VARIABLE}"))?;
    Ok(std::path::absolute(root)?.join("blockd"))
}

/// Ours, else the user's cache; empty variables count as not set, and so does a relative XDG directory (its
/// specification says so).
fn choose_root(own: Option<OsString>, xdg: Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    let own = own.map(PathBuf::from).filter(|dir| !dir.as_os_str().is_empty());
    let xdg = xdg.map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = home.filter(|dir| dir.is_absolute()).map(|dir| dir.join(".cache"));
    own.or(xdg).or(home)
}

/// The element of a list that has `value` under `key`.
fn find<'a>(list: &'a Value, key: &str, value: &str) -> Result<&'a Value> {
    let mut items = list.as_array().into_iter().flatten();
    items
        .find(|item| item[key].as_str() == Some(value))
        .with_context(|| format!("cargo's metadata lacks {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("cargo's metadata lacks {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn source(features: &[&str]) -> Source {
        Source {
            version: "1.2.3+4.5".to_owned(),
            id: "registry#librocksdb-sys".to_owned(),
            dir: PathBuf::from("/registry/librocksdb-sys"),
            features: features.iter().copied().map(str::to_owned).collect(),
        }
    }

    /// The one rule that nothing else would catch before somebody waits for 14 minutes.
    #[test]
    fn xtask_can_be_built_without_rocksdb() {
        let workspace = Workspace::find().unwrap();
        let arguments = ["tree", "--package", "xtask", "--edges", "normal,build", "--prefix", "none"];
        let tree = process::run(&mut workspace.cargo(&arguments)).unwrap().stdout;
        assert!(tree.starts_with("xtask "), "{tree}");
        assert!(!tree.contains(CRATE), "xtask depends on RocksDB:\n{tree}");
    }

    #[test]
    fn the_source_is_read_from_metadata() {
        let metadata = json!({
            "packages": [
                { "name": "other", "id": "other" },
                { "name": CRATE, "id": "registry#librocksdb-sys", "version": "1.2.3+4.5",
                  "manifest_path": "/registry/librocksdb-sys/Cargo.toml" },
            ],
            "resolve": { "nodes": [{ "id": "registry#librocksdb-sys", "features": ["lz4"] }] },
        });
        assert_eq!(Source::find(&metadata).unwrap(), source(&["lz4"]));
        assert!(Source::find(&json!({ "packages": [] })).is_err());
    }

    #[test]
    fn the_name_holds_what_the_compiled_code_depends_on() {
        let name = |features: &[&str]| name(&source(features), "x86_64-linux", "c++12");
        assert_eq!(name(&["bindgen-runtime", "static"]), "rocksdb-1.2.3+4.5-x86_64-linux-c++12");
        assert_eq!(name(&["lz4", "static"]), "rocksdb-1.2.3+4.5-x86_64-linux-c++12-lz4");
    }

    #[test]
    fn our_variable_comes_before_the_users_cache() {
        let root = |own: &str, xdg: &str| {
            choose_root(Some(own.into()), Some(xdg.into()), Some("/home/me".into())).unwrap()
        };
        assert_eq!(root("own", "/xdg"), Path::new("own"));
        assert_eq!(root("", "/xdg"), Path::new("/xdg"));
        assert_eq!(root("", "relative"), Path::new("/home/me/.cache"));
        assert_eq!(choose_root(None, None, None), None);
    }

    #[test]
    fn scratch_of_killed_builds_is_removed_and_so_is_ours() {
        let top = tempfile::tempdir().unwrap();
        for dir in ["x.building-1/left/over", "x", "y.building-1"] {
            fs::create_dir_all(top.path().join(dir)).unwrap();
        }
        let names = || {
            let entries = fs::read_dir(top.path()).unwrap().flatten();
            let mut names: Vec<String> =
                entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let scratch = Scratch::create(&top.path().join("x.building")).unwrap();
        assert_eq!(names(), ["x", &format!("x.building-{}", std::process::id()), "y.building-1"]);
        drop(scratch);
        assert_eq!(names(), ["x", "y.building-1"]);
    }

    #[test]
    fn a_second_build_waits_for_the_first() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("x.lock");
        let first = lock(&path, &Progress::start()).unwrap();
        let second = thread::spawn({
            let path = path.clone();
            move || lock(&path, &Progress::start()).map(drop)
        });
        thread::sleep(2 * LOOK);
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap().unwrap();
    }
}
