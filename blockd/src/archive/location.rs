//! Where an archive lies: `s3://BUCKET/PREFIX` or `file:///DIRECTORY`.
//!
//! For S3 the rest comes from the environment, as other programs have it: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
//! AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use url::{Host, Url};

use super::ArchiveError;
use super::storage::Storage;

/// How often a request is tried again, and until when after its beginning.
const RETRIES_MAX: usize = 5;
const RETRY_TIME_MAX: Duration = Duration::from_secs(180);
/// The longest pause between two tries.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a connection may take, how long the storage may be silent, and how long one request may take in all:
/// 16 MiB over a slow line.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
const SILENCE_TIME_MAX: Duration = Duration::from_secs(60);
const REQUEST_TIME_MAX: Duration = Duration::from_secs(600);

/// Where the environment may say that requests go: any of them could be another host.
const ENDPOINTS: [AmazonS3ConfigKey; 3] =
    [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::StsEndpoint];

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A bucket.
    S3 {
        /// Its name.
        bucket: String,
        /// What all objects' names begin with; may be empty.
        prefix: String,
    },
    /// A directory of this host.
    Directory(PathBuf),
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url =
            Url::parse(text).map_err(|_| "expected s3://BUCKET/PREFIX or file:///DIRECTORY".to_owned())?;
        if url.query().is_some()
            || url.fragment().is_some()
            || url.password().is_some()
            || !url.username().is_empty()
        {
            return Err(
                "an address has no options and no credentials: they come from the environment".to_owned()
            );
        }
        match url.scheme() {
            "s3" => Self::parse_s3(&url),
            "file" => {
                url.to_file_path().map(Self::Directory).map_err(|()| "expected file:///DIRECTORY".to_owned())
            }
            other => Err(format!("{other}:// is not known; s3://BUCKET/PREFIX and file:///DIRECTORY are")),
        }
    }
}

impl Location {
    fn parse_s3(url: &Url) -> Result<Self, String> {
        let bucket = url.host_str().filter(|bucket| is_bucket(bucket) && url.port().is_none());
        let bucket = bucket.ok_or("a bucket's name has 3 to 63 of a-z 0-9 . -")?.to_owned();
        let prefix = url.path().trim_matches('/').to_owned();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        let sound = prefix.bytes().all(plain) && !prefix.split('/').any(|part| part == "." || part == "..");
        if !sound || (!prefix.is_empty() && prefix.split('/').any(str::is_empty)) {
            return Err("a prefix has parts of A-Z a-z 0-9 . _ -, with / between".to_owned());
        }
        Ok(Self::S3 { bucket, prefix })
    }

    /// Opens the storage; the archive in it is not looked at. HTTP without TLS is for this host, unless `insecure_http`.
    ///
    /// # Errors
    /// The address or the environment makes no sense, or the directory is missing.
    pub fn open(&self, insecure_http: bool) -> Result<Storage, ArchiveError> {
        match self {
            Self::S3 { bucket, prefix } => open_s3(bucket, prefix, insecure_http),
            Self::Directory(directory) => {
                let store =
                    LocalFileSystem::new_with_prefix(directory).map_err(|error| self.unusable(&error))?;
                Ok(Storage::new(Arc::new(store.with_fsync(true)), Path::default()))
            }
        }
    }

    /// Makes the directory, if it is one.
    ///
    /// # Errors
    /// The system's.
    pub fn prepare(&self) -> Result<(), ArchiveError> {
        let Self::Directory(directory) = self else { return Ok(()) };
        std::fs::create_dir_all(directory).map_err(|error| self.unusable(&error))
    }

    fn unusable(&self, error: &dyn fmt::Display) -> ArchiveError {
        ArchiveError::Address(format!("{self}: {error}"))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Directory(directory) => write!(f, "file://{}", directory.display()),
        }
    }
}

fn is_bucket(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    (3..=63).contains(&name.len()) && name.bytes().all(plain) && !name.contains("..")
}

fn open_s3(bucket: &str, prefix: &str, insecure_http: bool) -> Result<Storage, ArchiveError> {
    install_tls();
    let address = |error: &dyn fmt::Display| ArchiveError::Address(format!("s3://{bucket}: {error}"));
    let builder = AmazonS3Builder::from_env();
    let mut http = false;
    for key in ENDPOINTS {
        if let Some(endpoint) = builder.get_config_value(&key) {
            http |= is_http_allowed(&endpoint, insecure_http)?;
        }
    }
    let options = ClientOptions::new()
        .with_connect_timeout(CONNECT_TIME_MAX)
        .with_read_timeout(SILENCE_TIME_MAX)
        .with_timeout(REQUEST_TIME_MAX);
    let retry = RetryConfig {
        backoff: BackoffConfig { max_backoff: RETRY_PAUSE_MAX, ..BackoffConfig::default() },
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_TIME_MAX,
    };
    let builder = builder.with_bucket_name(bucket).with_client_options(options).with_retry(retry);
    let store = builder.with_allow_http(http).build().map_err(|error| address(&error))?;
    let prefix = Path::parse(prefix).map_err(|error| address(&error))?;
    Ok(Storage::new(Arc::new(store), prefix))
}

/// rustls wants to be told who computes; ring is what we have.
fn install_tls() {
    if rustls::crypto::CryptoProvider::get_default().is_none()
        && rustls::crypto::ring::default_provider().install_default().is_err()
    {
        tracing::debug!("another thread has chosen the provider of TLS");
    }
}

/// Whether an endpoint is plain HTTP, and may be: what travels would be open to all on the way, and so would the
/// signatures of requests.
fn is_http_allowed(endpoint: &str, insecure_http: bool) -> Result<bool, ArchiveError> {
    let wrong =
        || ArchiveError::Address(format!("AWS_ENDPOINT_URL… is {endpoint:?}, expected https://HOST[:PORT]"));
    let url = Url::parse(endpoint).map_err(|_| wrong())?;
    let here = match url.host().ok_or_else(wrong)? {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    };
    match url.scheme() {
        "https" => Ok(false),
        "http" if here || insecure_http => Ok(true),
        "http" => Err(ArchiveError::Refused(format!("{endpoint} is another host, and not encrypted"))),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let s3 = |bucket: &str, prefix: &str| Location::S3 { bucket: bucket.into(), prefix: prefix.into() };
        let cases = [
            ("s3://vms", s3("vms", "")),
            ("s3://vms/", s3("vms", "")),
            ("s3://vm-archive/prod/a.b_c", s3("vm-archive", "prod/a.b_c")),
            ("file:///srv/archive", Location::Directory("/srv/archive".into())),
        ];
        for (text, location) in cases {
            assert_eq!(text.parse(), Ok(location), "{text}");
        }
        let wrong = [
            "",
            "vms",
            "s3://",
            "s3://VMS_1",
            "s3://v",
            "s3://vms:9000/x",
            "s3://vms/a//b",
            "s3://vms/a%2fb",
            "s3://vms/ä",
            "s3://key:secret@vms",
            "s3://vms?x=1",
            "http://vms",
            "file://host/x",
            "gs://vms",
        ];
        for text in wrong {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }

    #[test]
    fn http_is_for_this_host_unless_asked_for() {
        for endpoint in ["http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost"] {
            assert!(is_http_allowed(endpoint, false).unwrap(), "{endpoint}");
        }
        for endpoint in ["http://10.0.0.1:9000", "http://s3.example.org", "http://localhost.example.org"] {
            assert!(matches!(is_http_allowed(endpoint, false), Err(ArchiveError::Refused(_))), "{endpoint}");
            assert!(is_http_allowed(endpoint, true).unwrap());
        }
        assert!(!is_http_allowed("https://s3.example.org", false).unwrap());
        assert!(is_http_allowed("ftp://127.0.0.1", true).is_err());
        assert!(is_http_allowed("127.0.0.1:9000", true).is_err());
    }
}
