//! `qemu-img`, for images that are not raw: what they are, and their conversion onto an export.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use crate::exit_code;
use crate::failure::Failure;

/// Formats that lie in files. Drivers that reach elsewhere (nbd, https, blkdebug …) are not for images.
pub(super) const FORMATS: [&str; 11] =
    ["raw", "qcow2", "qcow", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels", "dmg", "bochs"];
/// How long looking at an image may take: a hostile one could make it long.
const INFO_TIME_MAX: Duration = Duration::from_secs(60);
/// Longest output that is read.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;

/// What an image is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ImageInfo {
    pub(super) format: String,
    /// Bytes of the disk in it.
    pub(super) virtual_size: u64,
    /// Other files that it names.
    pub(super) references: Vec<String>,
}

#[derive(Deserialize)]
struct RawInfo {
    format: String,
    #[serde(rename = "virtual-size")]
    virtual_size: u64,
    filename: String,
    #[serde(rename = "backing-filename")]
    backing: Option<String>,
    #[serde(rename = "format-specific")]
    specific: Option<Value>,
}

/// Looks at an image. An absolute path: others could be taken for a protocol (`nbd:…`, `json:…`).
pub(super) async fn info(path: &Path, format: Option<&str>) -> Result<ImageInfo, Failure> {
    let mut command = Command::new("qemu-img");
    command.args(["info", "--output=json"]);
    if let Some(format) = format {
        command.args(["-f", format]);
    }
    let mut child = start(command.arg("--").arg(path), path)?;
    let reading = read_both(&mut child);
    let late = |_| failed(path, "qemu-img info did not end within 60 s");
    let (stdout, stderr) = tokio::time::timeout(INFO_TIME_MAX, reading)
        .await
        .map_err(late)?
        .map_err(|error| failed(path, &error.to_string()))?;
    let status = child.wait().await.map_err(|error| failed(path, &error.to_string()))?;
    if !status.success() {
        return Err(failed(path, last_line(&stderr)));
    }
    parse_info(&stdout)
        .map_err(|error| failed(path, &format!("qemu-img says what we do not understand: {error}")))
}

fn parse_info(json: &str) -> serde_json::Result<ImageInfo> {
    let raw: RawInfo = serde_json::from_str(json)?;
    let mut references: Vec<String> = raw.backing.into_iter().collect();
    let data = raw.specific.as_ref().and_then(|specific| specific.get("data"));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    // A qcow2 image can keep its data in another file, a vmdk image can be a list of files.
    references.extend(data.and_then(|data| data.get("data-file")).and_then(text));
    let extents = data.and_then(|data| data.get("extents")).and_then(Value::as_array);
    let names = extents.into_iter().flatten().filter_map(|extent| extent.get("filename").and_then(text));
    references.extend(names.filter(|name| *name != raw.filename));
    Ok(ImageInfo { format: raw.format, virtual_size: raw.virtual_size, references })
}

/// Converts an image onto an export that is all zeroes, of the right size.
pub(super) async fn convert(
    path: &Path,
    format: &str,
    uri: &str,
    on_percent: impl FnMut(f64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut command = Command::new("qemu-img");
    command.args([
        "convert",
        "-p",
        "-n",
        "--target-is-zero",
        "-W",
        "-m",
        "8",
        "-f",
        format,
        "-O",
        "raw",
        "--",
    ]);
    let mut child = start(command.arg(path).arg(uri), path)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (followed, stderr) = tokio::join!(follow_percent(stdout, on_percent), read_text(stderr));
    followed?;
    let status = child.wait().await.map_err(|error| failed(path, &error.to_string()))?;
    let stderr = stderr.map_err(|error| failed(path, &error.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(path, last_line(&stderr))) }
}

/// The child ends with us: whoever gives up drops it.
fn start(command: &mut Command, path: &Path) -> Result<Child, Failure> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::new(
            exit_code::FAILED,
            format!("cannot look into {}", path.display()),
            "qemu-img is not installed",
            "apt-get install qemu-utils    (or --format raw, if it is raw)",
        ),
        _ => failed(path, &error.to_string()),
    })
}

async fn read_both(child: &mut Child) -> io::Result<(String, String)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    tokio::try_join!(read_text(stdout), read_text(stderr))
}

async fn read_text(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads `    (12.34/100%)\r` as it comes.
async fn follow_percent(
    pipe: Option<impl AsyncRead + Unpin>,
    mut on_percent: impl FnMut(f64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut bytes = [0; 4096];
    loop {
        let count = pipe.read(&mut bytes).await.unwrap_or(0);
        if count == 0 {
            return Ok(());
        }
        if let Some(percent) = percent_in(&String::from_utf8_lossy(&bytes[..count])) {
            on_percent(percent)?;
        }
    }
}

/// The last percentage in a piece of output.
fn percent_in(text: &str) -> Option<f64> {
    let before = &text[..text.rfind("/100%")?];
    before[before.rfind('(')? + 1..].trim().parse().ok()
}

fn last_line(text: &str) -> &str {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("qemu-img failed without a word")
}

fn failed(path: &Path, why: &str) -> Failure {
    let next = format!("qemu-img info {}    (is it an image? --format names its format)", path.display());
    Failure::new(exit_code::FAILED, format!("cannot import {}", path.display()), why, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_an_image_names_is_found() {
        let json = r#"{"format":"qcow2","virtual-size":1024,"filename":"/a.qcow2","backing-filename":"/etc/shadow",
            "format-specific":{"type":"qcow2","data":{"data-file":"/etc/passwd"}}}"#;
        assert_eq!(parse_info(json).unwrap().references, ["/etc/shadow", "/etc/passwd"]);
        let json = r#"{"format":"vmdk","virtual-size":1024,"filename":"/a.vmdk","format-specific":{"type":"vmdk",
            "data":{"extents":[{"filename":"/a.vmdk"},{"filename":"/etc/shadow"}]}}}"#;
        assert_eq!(parse_info(json).unwrap().references, ["/etc/shadow"]);
    }

    #[test]
    fn percentages() {
        assert_eq!(percent_in("    (0.00/100%)\r    (12.50/100%)\r"), Some(12.5));
        assert_eq!(percent_in("nothing"), None);
    }
}
