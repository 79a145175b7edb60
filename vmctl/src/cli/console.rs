//! `vmctl vm console`: the guest's serial line on this terminal. The bytes are the guest's and go through as they are: a
//! console is what a terminal is for. Whoever does not trust a guest reads the log through `cat -v`.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::dup;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;

use super::{Context, Trying, output};
use crate::agent::view::Console;
use crate::exit_code;
use crate::failure::Failure;
use crate::vm::name::VmName;

/// Ctrl-].
const LEAVE: u8 = 0x1d;
/// Bytes moved at once; nothing else is kept.
const PIECE_BYTES: usize = 4096;
/// Pieces typed or piped in that wait for the guest.
const TYPED_MAX: usize = 16;
/// How long the guest may take none of what is typed before we say that it is stuck.
const WRITE_TIME_MAX: Duration = Duration::from_secs(30);

pub(super) async fn run(context: &Context, name: &VmName, log: bool) -> Result<(), Failure> {
    let trying = || format!("cannot open the console of {name}");
    let console = context.client.console(name).await.trying(trying)?;
    if !context.for_people() {
        return output::object(&console);
    }
    if log { print_log(&console) } else { follow(name, &console).await }
}

fn print_log(console: &Console) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        let next = "sudo vmctl …    (the log is the agent's)";
        Failure::new(
            exit_code::FAILED,
            "cannot read the console's log",
            format!("{}: {error}", console.log.display()),
            next,
        )
    };
    let mut file = std::fs::File::open(&console.log).map_err(failed)?;
    let mut piece = [0; PIECE_BYTES];
    loop {
        let count = io::Read::read(&mut file, &mut piece).map_err(failed)?;
        if count == 0 {
            return Ok(());
        }
        output::write(&piece[..count])?;
    }
}

async fn follow(name: &VmName, console: &Console) -> Result<(), Failure> {
    let stream = UnixStream::connect(&console.socket).await.map_err(|error| {
        let (code, why) = match error.kind() {
            ErrorKind::PermissionDenied => {
                (exit_code::REFUSED, "the console is the agent's: root may open it".to_owned())
            }
            _ => (exit_code::UNREACHABLE, format!("{}: {error}", console.socket.display())),
        };
        Failure::new(
            code,
            format!("cannot open the console of {name}"),
            why,
            format!("vmctl vm show {name}    (does it run?)"),
        )
    })?;
    let raw = RawTerminal::enter().map_err(|error| output::failure(&error))?;
    if raw.is_some() {
        note(&format!("{name}: Ctrl-] leaves\r\n"));
    }
    let result = carry(stream, raw.is_some()).await;
    drop(raw);
    match result {
        Ok(End::Left) => Ok(()),
        Ok(End::Guest) => {
            note(&format!("\n{name}: its console has ended\n"));
            Ok(())
        }
        Err(error) => Err(output::failure(&error)),
    }
}

/// Words for the person, not part of the guest's output.
fn note(text: &str) {
    if io::stderr().write_all(text.as_bytes()).is_err() {
        // Nobody to tell.
    }
}

enum End {
    /// The person leaves.
    Left,
    /// QEMU has ended, or gave the console to somebody else.
    Guest,
}

async fn carry(stream: UnixStream, at_terminal: bool) -> io::Result<End> {
    let (mut from_guest, mut to_guest) = stream.into_split();
    let (sender, mut typed) = mpsc::channel(TYPED_MAX);
    std::thread::spawn(move || read_input(&sender));
    let mut stdout = tokio::io::stdout();
    let mut piece = [0; PIECE_BYTES];
    let mut input_open = true;
    loop {
        tokio::select! {
            count = from_guest.read(&mut piece) => {
                let count = count?;
                if count == 0 {
                    return Ok(End::Guest);
                }
                stdout.write_all(&piece[..count]).await?;
                stdout.flush().await?;
            }
            bytes = typed.recv(), if input_open => match bytes {
                Some(bytes) => {
                    let left = at_terminal.then(|| bytes.iter().position(|byte| *byte == LEAVE)).flatten();
                    send(&mut to_guest, &bytes[..left.unwrap_or(bytes.len())]).await?;
                    if left.is_some() {
                        return Ok(End::Left);
                    }
                }
                // The input's end is not the guest's: what it writes is still wanted. A terminal that hangs up is.
                None if at_terminal => return Ok(End::Left),
                None => input_open = false,
            },
        }
    }
}

async fn send(to_guest: &mut OwnedWriteHalf, bytes: &[u8]) -> io::Result<()> {
    let sending = tokio::time::timeout(WRITE_TIME_MAX, to_guest.write_all(bytes));
    sending
        .await
        .map_err(|_| io::Error::new(ErrorKind::TimedOut, "the guest takes nothing of what is typed"))?
}

/// Reads in a thread of its own: a read of a terminal cannot be taken back.
fn read_input(typed: &mpsc::Sender<Vec<u8>>) {
    let mut piece = [0; PIECE_BYTES];
    loop {
        match io::Read::read(&mut io::stdin(), &mut piece) {
            Ok(0) => return,
            Ok(count) if typed.blocking_send(piece[..count].to_vec()).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return tracing::debug!(%error, "no more input"),
        }
    }
}

/// The terminal without line editing and signals, until it is dropped.
struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// `None`: input or output is no terminal.
    fn enter() -> io::Result<Option<Self>> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Some(Self { terminal: dup(io::stdin())?, before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before) {
            note(&format!("the terminal stays raw ({error}): type reset\r\n"));
        }
    }
}
