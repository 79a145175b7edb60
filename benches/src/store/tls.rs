//! Reads and writes of 256 KiB through TLS: our server beside nbdkit with `--tls=require`, a file in the page cache behind each.
//!
//! The client is nbdcopy, one connection, for fio's engine takes no certificates. It decrypts with GnuTLS on the same
//! processors, so that the rate says as much of it as of the server; what the server spends for a MiB is the server's own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use fixtures::nbd::certificates::{Authority, Wanted};

use super::record::{Key, Recorder};
use super::room::{NEXT_DIR, Room};
use crate::cpu::spent_by_tree;
use crate::process::{Guarded, READY_WITHIN, last_words, spawn};
use crate::trouble::{OrTrouble, Trouble};

/// Name of the scenario.
pub const NAME: &str = "tls";
/// Key of the ratio with nbdkit.
pub const RATIO: &str = "ours / nbdkit";
/// What is measured, by the direction's name.
pub const RATE: [&str; 2] = ["read MiB/s", "write MiB/s"];
/// The server's cost of it.
pub const CPU: [&str; 2] = ["MiB read / server CPU s", "MiB written / server CPU s"];
const SUBJECTS: [&str; 2] = ["ours", "nbdkit"];
/// Pause between two looks whether a server is ready.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Measures both servers in turns.
///
/// # Errors
/// Somebody asked to stop, or nothing can be measured.
pub fn run(room: &Room<'_>, recorder: &mut Recorder) -> Result<(), Trouble> {
    let pki = room.new_short("pki");
    make_certificates(&pki)?;
    let image = room.new_image("tls");
    fill(room, &image)?;
    for round in 1..=room.plan.rounds {
        for subject in SUBJECTS {
            room.interrupt.check()?;
            if let Err(trouble) = round_of(room, recorder, (subject, round), (&pki, &image)) {
                recorder.fail(NAME, subject, &trouble);
            }
        }
    }
    for measure in [RATE, CPU].as_flattened() {
        let key = Key { scenario: NAME, subject: RATIO.into(), measure: (*measure).into(), unit: "x" };
        recorder.put_ratios(&key, (SUBJECTS[0], measure), (SUBJECTS[1], measure));
    }
    Ok(())
}

fn make_certificates(pki: &Path) -> Result<(), Trouble> {
    let authority = Authority::new("benches");
    let made = fs::create_dir(pki)
        .and_then(|()| authority.write(pki))
        .and_then(|()| authority.make(&Wanted::server()).write(pki, "server"))
        .and_then(|()| authority.make(&Wanted::client("nbdcopy")).write(pki, "client"));
    made.or_trouble(|| "make certificates".into(), "set TMPDIR to a writable directory")
}

/// An image of bytes that are not zero, in the page cache and on the disk.
fn fill(room: &Room<'_>, image: &Path) -> Result<(), Trouble> {
    let piece: Vec<u8> =
        (0..1_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 | 1).collect();
    let mut file = fs::File::create(image).or_trouble(|| "make an image".into(), NEXT_DIR)?;
    for _ in 0..room.plan.image_bytes >> 20 {
        std::io::Write::write_all(&mut file, &piece).or_trouble(|| "fill an image".into(), NEXT_DIR)?;
    }
    file.sync_all().or_trouble(|| "fill an image".into(), NEXT_DIR)
}

fn round_of(
    room: &Room<'_>,
    recorder: &mut Recorder,
    (subject, round): (&str, u32),
    (pki, image): (&Path, &Path),
) -> Result<(), Trouble> {
    let (mut server, uri) = serve(room, subject, pki, image)?;
    let source = image.display().to_string();
    for (index, ends) in [[uri.as_str(), "null:"], [&source, &uri]].into_iter().enumerate() {
        // Once unmeasured: what is new to the server's caches is not TLS.
        copy(room, ends)?;
        let pid = server.pid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
        let (cpu, begun) = (spent_by_tree(pid)?, Instant::now());
        copy(room, ends)?;
        let (wall, cpu) = (begun.elapsed(), spent_by_tree(pid)?.saturating_sub(cpu));
        let mib = (room.plan.image_bytes >> 20) as f64;
        let mut put = |measure: &str, value| {
            let key = Key { scenario: NAME, subject: subject.into(), measure: measure.into(), unit: "MiB/s" };
            recorder.put(key, round, value);
        };
        put(RATE[index], mib / wall.as_secs_f64());
        // A tick of the kernel's clock at least.
        put(CPU[index], mib / cpu.as_secs_f64().max(0.01));
    }
    server.stop()
}

fn copy(room: &Room<'_>, [from, to]: [&str; 2]) -> Result<(), Trouble> {
    let options = ["nbdcopy", "--no-extents", "--connections=1", "--requests=16", "--request-size=262144"];
    room.run(&[&options[..], &["--allocated", from, to]].concat()).map(drop)
}

/// A server on a port of its own, and how nbdcopy finds it.
fn serve(room: &Room<'_>, subject: &str, pki: &Path, image: &Path) -> Result<(Guarded, String), Trouble> {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.or_trouble(|| "find a free port".into(), "ss -ltn")?;
    let (port, pki) = (address.port().to_string(), pki.display().to_string());
    let image = image.display().to_string();
    let ours: PathBuf = room.plan.nbd_server.clone();
    let line = match subject == SUBJECTS[0] {
        true => vec![
            ours.display().to_string(),
            image,
            "--listen".into(),
            address.to_string(),
            "--tls-certificates".into(),
            pki.clone(),
        ],
        false => {
            let tls = format!("--tls-certificates={pki}");
            let words =
                ["nbdkit", "-f", "-i", "127.0.0.1", "-p", &port, "--tls=require", &tls, "--tls-verify-peer"];
            let words = words.iter().map(|&word| word.to_owned());
            words.chain(["file".to_owned(), image]).collect()
        }
    };
    let log = room.new_short("log");
    let mut server = Guarded::child(spawn(&line, &log, None)?);
    let deadline = Instant::now() + READY_WITHIN;
    while TcpStream::connect(address).is_err() {
        room.interrupt.check()?;
        let ended = server.ended().or_trouble(|| "wait for a server".into(), "try it by hand")?;
        if ended.is_some() || Instant::now() > deadline {
            return Err(Trouble::new(format!("start {subject}"), last_words(&log), line.join(" ")));
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok((server, format!("nbds://localhost:{port}/?tls-certificates={pki}")))
}
