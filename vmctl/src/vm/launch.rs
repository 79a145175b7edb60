//! Starting QEMU: it goes into the background by itself, so that it outlives the agent.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::places::Places;
use super::process::Process;
use crate::error::{Error, Kind};
use crate::qmp::shown;

/// How long QEMU may take until it is in the background: it opens its disks before.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// Most of its words that are kept.
const WORDS_BYTES_MAX: u64 = 16 << 10;
/// Lines of its words that are passed on.
const WORDS_LINES: usize = 4;

/// Starts QEMU; it is in the background, with its monitor open and its processors stopped, when this returns.
///
/// # Errors
/// It cannot be run, or ended first; the message is what it said.
pub async fn launch(program: &Path, arguments: &[String], places: &Places) -> Result<Process, Error> {
    let failed =
        |error: io::Error| Error::one_line(Kind::Io, format!("cannot start {}: {error}", program.display()));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().map_err(failed)?;
    let mut stderr = child.stderr.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
    let waiting = async {
        let mut words = Vec::new();
        (&mut stderr).take(WORDS_BYTES_MAX).read_to_end(&mut words).await?;
        // Beyond the limit nobody reads: closed, so that it does not wait for us.
        drop(stderr);
        Ok((child.wait().await?, words))
    };
    let (status, words) = match tokio::time::timeout(START_TIME_MAX, waiting).await {
        Ok(result) => result.map_err(failed)?,
        Err(_) => {
            // Its second half is in the background already, and must not come up behind our back.
            if let Some(process) =
                read_pid(&places.pid_file()).ok().and_then(|pid| Process::of_pid(pid).ok().flatten())
            {
                process.kill().map_err(failed)?;
            }
            let why = format!("QEMU was not ready within {} s", START_TIME_MAX.as_secs());
            return Err(Error::one_line(Kind::Timeout, with_words(&why, "", places)));
        }
    };
    if !status.success() {
        let words = String::from_utf8_lossy(&words);
        let why = with_words(&format!("QEMU ended at once ({status})"), &words, places);
        return Err(Error::one_line(Kind::Io, why).with_next(format!("cat {}", places.qemu_log().display())));
    }
    let pid = read_pid(&places.pid_file())?;
    let gone = || Error::one_line(Kind::Io, with_words("QEMU ended as soon as it was started", "", places));
    Process::of_pid(pid).map_err(failed)?.ok_or_else(gone)
}

/// The number in QEMU's file.
///
/// # Errors
/// There is none.
pub fn read_pid(file: &Path) -> Result<i32, Error> {
    let unusable = |reason: String| Error::one_line(Kind::Io, format!("{}: {reason}", file.display()));
    let text = fs::read_to_string(file).map_err(|error| unusable(error.to_string()))?;
    let pid = text.trim().parse().ok().filter(|&pid: &i32| pid > 1);
    pid.ok_or_else(|| unusable(format!("no process id: {}", shown(&text))))
}

fn with_words(why: &str, words: &str, places: &Places) -> String {
    let said = [last_lines(words), last_words(places)].into_iter().find(|said| !said.is_empty());
    said.map_or_else(|| why.to_owned(), |said| format!("{why}: {said}"))
}

/// What QEMU complained about last, as one line; empty if it did not.
pub fn last_words(places: &Places) -> String {
    read_tail(&places.qemu_log()).map(|tail| last_lines(&tail)).unwrap_or_default()
}

fn read_tail(file: &Path) -> io::Result<String> {
    let mut file = fs::File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(WORDS_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(WORDS_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<String> =
        text.lines().map(without_prefix).filter(|line| !line.is_empty()).map(shown).collect();
    lines[lines.len().saturating_sub(WORDS_LINES)..].join("; ")
}

/// A line without QEMU's time and name in front.
fn without_prefix(line: &str) -> &str {
    line.split_once("qemu-system-x86_64: ").map_or(line, |(_, rest)| rest).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_short_and_without_their_prefix() {
        let text = "2026-11-21T01:21:28.910957Z qemu-system-x86_64: -blockdev x: Failed to connect\n\n";
        assert_eq!(last_lines(text), "-blockdev x: Failed to connect");
        assert_eq!(last_lines("a\nb\nc\nd\ne\n"), "b; c; d; e");
    }

    #[tokio::test]
    async fn what_ends_at_once_is_told_with_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::new(&dir.path().join("r"), &dir.path().join("d"), &"web1".parse().unwrap());
        places.prepare().unwrap();
        let script = ["-c".to_owned(), "echo 'no \x1b[2Jdisk' >&2; exit 1".to_owned()];
        let error = launch(Path::new("/bin/sh"), &script, &places).await.unwrap_err();
        assert!(error.message.contains("QEMU ended at once (exit status: 1): no \\u{1b}[2Jdisk"), "{error}");
        let error = launch(Path::new("/nonexistent"), &[], &places).await.unwrap_err();
        assert!(error.message.contains("cannot start /nonexistent"), "{error}");
        std::fs::write(places.pid_file(), "1\n").unwrap();
        assert!(read_pid(&places.pid_file()).is_err(), "init is no QEMU");
    }
}
