//! `blockctl archive …`: snapshots in S3 or a directory, and back. The work is done here, in the client: the daemon
//! serves the clusters over NBD and knows nothing of archives.

mod look;
mod pull;
mod push;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::archive::location::Location;
use crate::archive::storage::Storage;
use crate::archive::{Archive, ArchiveError, Digest, Trust, key, parse_hex};
use crate::events::now_ms;
use crate::exit_code;
use crate::failure::Failure;

use super::args::{snapshot_name, volume_name};
use super::context::Context;
use super::snapshot::hash_of;
use super::volume::Changed;

/// Longest message of a storage that is passed on; some send pages of HTML.
const MESSAGE_CHARS_MAX: usize = 300;

const WHERE: &str = "s3://BUCKET/PREFIX or file:///DIRECTORY";

/// Archives.
#[derive(Subcommand, Debug)]
pub enum ArchiveCommand {
    /// Make an empty archive, and its key if the file does not exist. Keep a copy of the key elsewhere.
    #[command(
        after_help = "Examples:\n  blockctl archive init --to s3://vm-archive/prod --key /etc/blockd/archive.key\n  blockctl archive init --to file:///mnt/nas/archive --key archive.key"
    )]
    Init(InitArgs),
    /// Add a snapshot. What the archive has already is not sent again.
    #[command(
        after_help = "Example:\n  blockctl archive push web@monday --to s3://vm-archive/prod --key /etc/blockd/archive.key"
    )]
    Push(PushArgs),
    /// Make a volume of a snapshot in the archive; it appears when all of it was checked.
    #[command(
        after_help = "Example:\n  blockctl archive pull web@monday web2 --from s3://vm-archive/prod --key archive.key.pub"
    )]
    Pull(PullArgs),
    /// The snapshots in the archive, or one volume's.
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  blockctl archive list --from s3://vm-archive/prod --key archive.key.pub"
    )]
    List(ListArgs),
    /// Check the archive, or one snapshot: signatures, pages, packs; with --read-data every byte.
    #[command(
        after_help = "Examples:\n  blockctl archive verify --from s3://vm-archive/prod --key archive.key.pub\n  blockctl archive verify web@monday --from file:///mnt/nas/archive --key archive.key.pub --read-data"
    )]
    Verify(VerifyArgs),
}

/// How the storage is reached.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Transport {
    /// Talk to another host without encryption if AWS_ENDPOINT_URL says http.
    #[arg(long)]
    insecure_http: bool,
}

/// `archive init`.
#[derive(Args, Debug)]
pub struct InitArgs {
    /// Where the archive will lie.
    #[arg(long, value_name = "URL", help = WHERE, env = "BLOCKD_ARCHIVE")]
    to: Location,
    /// The file of the secret key; its public half goes to FILE.pub.
    #[arg(long, value_name = "FILE", env = "BLOCKD_ARCHIVE_KEY")]
    key: PathBuf,
    #[command(flatten)]
    transport: Transport,
}

/// `archive push`.
#[derive(Args, Debug)]
pub struct PushArgs {
    /// NAME@SNAP.
    #[arg(value_name = "NAME@SNAP", value_parser = snapshot_name)]
    name: String,
    /// The archive.
    #[arg(long, value_name = "URL", help = WHERE, env = "BLOCKD_ARCHIVE")]
    to: Location,
    /// The file of the secret key.
    #[arg(long, value_name = "FILE", env = "BLOCKD_ARCHIVE_KEY")]
    key: PathBuf,
    #[command(flatten)]
    transport: Transport,
    /// Say what would happen, change nothing.
    #[arg(long)]
    plan: bool,
}

/// The archive that is read, and whose word is taken.
#[derive(Args, Debug)]
pub(super) struct Source {
    /// The archive.
    #[arg(long, value_name = "URL", help = WHERE, env = "BLOCKD_ARCHIVE")]
    from: Location,
    /// The archive's key, the secret or the public file.
    #[arg(long, value_name = "FILE", env = "BLOCKD_ARCHIVE_KEY")]
    key: Option<PathBuf>,
    /// Believe the archive which key is its own. Whoever can write to it could have put another one there.
    #[arg(long, conflicts_with = "key")]
    trust_archive: bool,
    #[command(flatten)]
    transport: Transport,
}

/// `archive pull`.
#[derive(Args, Debug)]
pub struct PullArgs {
    /// NAME@SNAP in the archive.
    #[arg(value_name = "NAME@SNAP", value_parser = snapshot_name)]
    name: String,
    /// The new volume's name.
    #[arg(value_name = "NEW", value_parser = volume_name)]
    to: String,
    #[command(flatten)]
    source: Source,
    /// Say what would happen, change nothing.
    #[arg(long)]
    plan: bool,
}

/// `archive list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only this volume's.
    #[arg(value_name = "NAME", value_parser = volume_name)]
    volume: Option<String>,
    #[command(flatten)]
    source: Source,
}

/// `archive verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Only this snapshot.
    #[arg(value_name = "NAME@SNAP", value_parser = snapshot_name)]
    name: Option<String>,
    #[command(flatten)]
    source: Source,
    /// Read every chunk, and compare the whole image with its hash.
    #[arg(long)]
    read_data: bool,
}

pub(super) async fn run(context: &Context, command: ArchiveCommand) -> Result<(), Failure> {
    match command {
        ArchiveCommand::Init(args) => init(context, &args).await,
        ArchiveCommand::Push(args) => push::run(context, &args).await,
        ArchiveCommand::Pull(args) => pull::run(context, &args).await,
        ArchiveCommand::List(args) => look::list(context, &args).await,
        ArchiveCommand::Verify(args) => look::verify(context, &args).await,
    }
}

async fn init(context: &Context, args: &InitArgs) -> Result<(), Failure> {
    let fail = |error| failure(format!("cannot make an archive in {}", args.to), error);
    args.to.prepare().map_err(fail)?;
    let storage = open_storage(&args.to, args.transport).map_err(fail)?;
    let exists = args.key.try_exists().unwrap_or(true);
    let secret = if exists { key::read_secret(&args.key) } else { key::create(&args.key) }.map_err(fail)?;
    Archive::create(storage, &secret, now_ms()).await.map_err(fail)?;
    let (name, file) = (args.to.to_string(), args.key.display());
    let sentence = format!(
        "made an archive in {name}, key {}\nKeep copies of {file} (to push) and {file}.pub (to check and restore) elsewhere.",
        secret.public().to_hex()
    );
    Changed::new("initialised", &name).tell(context, &sentence)
}

fn open_storage(location: &Location, transport: Transport) -> Result<Storage, ArchiveError> {
    location.open(transport.insecure_http)
}

impl Source {
    /// Opens the archive, if it is clear whose word is to be taken.
    async fn open(&self, what: &str) -> Result<Archive, Failure> {
        let fail = |error| failure(what, error);
        let trust = match &self.key {
            Some(file) => Trust::Key(key::read_public(file).map_err(fail)?),
            None if self.trust_archive => Trust::Archive,
            None => {
                let why = "without its key nothing tells whether the archive is what was written";
                let next = "--key FILE.pub, or --trust-archive to believe the archive itself";
                return Err(Failure::new(exit_code::REFUSED, what, why, next));
            }
        };
        let storage = open_storage(&self.from, self.transport).map_err(fail)?;
        Archive::open(storage, trust).await.map_err(fail)
    }
}

/// BLAKE3 of a snapshot of this host.
async fn hash(context: &Context, name: &str) -> Result<Digest, Failure> {
    let digits = hash_of(context, name).await?;
    parse_hex(&digits).ok_or_else(|| {
        let next = "blockctl --version; blockd --version    (do they fit?)";
        Failure::new(exit_code::FAILED, format!("cannot hash {name}"), "the answer is no hash", next)
    })
}

/// What a person is told.
fn failure(what: impl Into<String>, error: ArchiveError) -> Failure {
    let (code, next) = match &error {
        ArchiveError::Storage { source, .. } => of_storage(source),
        ArchiveError::NotFound(object) if object == "config" => {
            (exit_code::NOT_FOUND, "blockctl archive init --to URL --key FILE    (or another URL)")
        }
        ArchiveError::NotFound(_) => (exit_code::NOT_FOUND, "blockctl archive list --from URL"),
        ArchiveError::Damaged { .. } => {
            (exit_code::VERIFICATION_FAILED, "blockctl archive verify --from URL --key FILE.pub --read-data")
        }
        ArchiveError::Refused(_) => {
            (exit_code::REFUSED, "blockctl archive list --from URL    (shows what is there)")
        }
        ArchiveError::Key { .. } => {
            (exit_code::USAGE, "blockctl archive init --help    (says how keys are made)")
        }
        ArchiveError::Address(_) => (exit_code::USAGE, "blockctl archive push --help"),
        ArchiveError::TooLarge(_) | ArchiveError::Stopped(_) => {
            (exit_code::FAILED, "try again; blockctl status")
        }
    };
    let line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let why: String = line.chars().take(MESSAGE_CHARS_MAX).collect();
    Failure::new(code, what, why, next)
}

fn of_storage(error: &object_store::Error) -> (u8, &'static str) {
    use object_store::Error;
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            (exit_code::REFUSED, "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and what they may do")
        }
        Error::Generic { .. } => (
            exit_code::UNREACHABLE,
            "check AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID; then the same command again",
        ),
        _ => (exit_code::FAILED, "the same command again goes on where this one ended"),
    }
}
