//! One TLS connection without I/O: ciphertext in, plaintext out into the caller's memory; and back.
//!
//! **Why the input's memory matters.** The library decrypts in place, and keeps positions in the input while a
//! handshake message is spread over several records. In the option phase the input therefore stays in one buffer
//! ([`Session::incoming`]). In transmission it comes in buffers that travel to the ring and back, so a handshake message
//! there must be whole in its record: one in pieces ends the connection. Nobody sends such: the only one is KeyUpdate,
//! 5 bytes.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};
use rustls::{ServerConfig, server::ServerConnectionData};

/// Plaintext of one record, at most.
pub const RECORD_BYTES_MAX: usize = 16 << 10;
/// What a record has besides its plaintext, at most: header, nonce, tag, padding.
const RECORD_OVERHEAD_MAX: usize = 5 + 256;
/// Room that one more record needs, with a message of the library's before it (an update of keys).
const SEAL_ROOM: usize = RECORD_BYTES_MAX + RECORD_OVERHEAD_MAX + 512;
/// Ciphertext that is kept for a handshake that is not complete: one message of the largest size, with its records.
const HANDSHAKE_BYTES_MAX: usize = 80 << 10;
/// A record's header: type, version, length.
const RECORD_HEADER_BYTES: usize = 5;

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The peer breaks TLS, or is not let in.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// More of a handshake than any client needs.
    #[error("more than {HANDSHAKE_BYTES_MAX} bytes of handshake")]
    TooMuch,
    /// See the module.
    #[error("a handshake message in pieces")]
    Pieces,
    /// The keys have been used as often as they may, and this version of TLS cannot renew them.
    #[error("the keys are used up")]
    UsedUp,
}

/// What has come of input.
#[derive(Debug)]
pub struct Opened {
    /// Bytes of input that are done with.
    pub used: usize,
    /// The peer says goodbye: nothing follows.
    pub ended: bool,
}

/// What has become of plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Bytes of plaintext that are in it.
    pub plain: usize,
    /// Bytes of ciphertext.
    pub cipher: usize,
}

/// See the module.
pub struct Session {
    records: Records,
    /// Decrypted, and not taken yet: the rest of one record.
    rest: Vec<u8>,
    rest_at: usize,
    /// Small pieces of plaintext are gathered here: a record for each would cost more than the copy.
    gathered: Vec<u8>,
    /// Ciphertext that has come and was not used, until transmission begins.
    incoming: Vec<u8>,
    broken: bool,
}

/// The library's part.
struct Records {
    tls: UnbufferedServerConnection,
    /// Ciphertext that the library wants sent. Bounded by it: a flight of the handshake, one alert, one update of keys.
    output: Vec<u8>,
    ended: bool,
}

enum Turn {
    Again,
    NeedInput,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Session {
    /// A server's session with a client that has said nothing yet.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, SessionError> {
        let tls = UnbufferedServerConnection::new(config)?;
        Ok(Self {
            records: Records { tls, output: Vec::new(), ended: false },
            rest: Vec::new(),
            rest_at: 0,
            gathered: Vec::with_capacity(RECORD_BYTES_MAX),
            incoming: Vec::new(),
            broken: false,
        })
    }

    /// The handshake is not over.
    pub fn is_handshaking(&self) -> bool {
        self.records.tls.is_handshaking()
    }

    /// What the client has shown; empty before the end of the handshake.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        self.records.tls.peer_certificates().unwrap_or_default()
    }

    /// Takes ciphertext as it came; plaintext is added to `plain`. For the option phase, where little comes. What
    /// [`Session::take_output`] has must be sent afterwards, also after an error: it may say why.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub fn receive(&mut self, cipher: &[u8], plain: &mut Vec<u8>) -> Result<Opened, SessionError> {
        self.incoming.extend_from_slice(cipher);
        let mut incoming = std::mem::take(&mut self.incoming);
        let result = self.records.run(&mut incoming, &mut |bytes| {
            plain.extend_from_slice(bytes);
            true
        });
        self.incoming = incoming;
        let opened = self.checked(result)?;
        self.incoming.drain(..opened.used);
        if self.incoming.len() > HANDSHAKE_BYTES_MAX {
            self.broken = true;
            return Err(SessionError::TooMuch);
        }
        Ok(opened)
    }

    /// Ciphertext that must be sent before anything else is done.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.records.output)
    }

    /// Ciphertext of a record that has not come whole, when transmission begins.
    pub fn take_incoming(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.incoming)
    }

    /// Decrypts until `targets` are full or no whole record is left in `cipher`; tells how many bytes were filled.
    ///
    /// # Errors
    /// See [`SessionError`]; what was filled before is lost with the connection.
    pub fn open(
        &mut self,
        cipher: &mut [u8],
        targets: (&mut [u8], &mut [u8]),
    ) -> Result<(usize, Opened), SessionError> {
        let mut targets = Targets { first: targets.0, second: targets.1, filled: 0 };
        self.rest_at += targets.put(&self.rest[self.rest_at..]);
        if targets.room() == 0 {
            return Ok((targets.filled, Opened { used: 0, ended: false }));
        }
        self.rest_at = 0;
        self.rest.clear();
        let rest = &mut self.rest;
        let result = self.records.run(cipher, &mut |bytes| {
            let taken = targets.put(bytes);
            rest.extend_from_slice(&bytes[taken..]);
            targets.room() > 0
        });
        let opened = self.checked(result)?;
        Ok((targets.filled, opened))
    }

    fn checked(&mut self, result: Result<Opened, SessionError>) -> Result<Opened, SessionError> {
        self.broken |= result.is_err();
        result
    }

    /// Encrypts as much of the pieces as `out` has room for, in records as large as possible. Room for at least one
    /// whole record must be there: [`sealed_bytes_max`].
    ///
    /// # Errors
    /// `UsedUp`; and `Tls` after any other error.
    pub fn seal<'a>(
        &mut self,
        plain: impl Iterator<Item = &'a [u8]>,
        out: &mut [u8],
    ) -> Result<Sealed, SessionError> {
        let mut sealed = Sealed { plain: 0, cipher: 0 };
        self.gathered.clear();
        for mut piece in plain {
            while !piece.is_empty() {
                let room = (out.len() - sealed.cipher).saturating_sub(RECORD_OVERHEAD_MAX + 512);
                let room = room.min(RECORD_BYTES_MAX) - self.gathered.len().min(room);
                if room == 0 {
                    return self.seal_gathered(sealed, out);
                }
                let take = piece.len().min(room);
                let (now, later) = piece.split_at(take);
                piece = later;
                if self.gathered.is_empty() && take == RECORD_BYTES_MAX {
                    self.seal_record(now, &mut sealed, out)?;
                } else {
                    self.gathered.extend_from_slice(now);
                }
                if self.gathered.len() == RECORD_BYTES_MAX {
                    sealed = self.seal_gathered(sealed, out)?;
                }
            }
        }
        self.seal_gathered(sealed, out)
    }

    fn seal_gathered(&mut self, mut sealed: Sealed, out: &mut [u8]) -> Result<Sealed, SessionError> {
        if !self.gathered.is_empty() {
            let gathered = std::mem::take(&mut self.gathered);
            let result = self.seal_record(&gathered, &mut sealed, out);
            self.gathered = gathered;
            self.gathered.clear();
            result?;
        }
        Ok(sealed)
    }

    fn seal_record(&mut self, plain: &[u8], sealed: &mut Sealed, out: &mut [u8]) -> Result<(), SessionError> {
        if self.broken {
            return Err(SessionError::UsedUp);
        }
        let result = self.records.write(&mut out[sealed.cipher..], Some(plain));
        self.broken |= result.is_err();
        sealed.cipher += result?;
        sealed.plain += plain.len();
        Ok(())
    }

    /// The bytes that say goodbye, into `out`; none after an error.
    pub fn say_goodbye(&mut self, out: &mut [u8]) -> usize {
        if self.broken {
            return 0;
        }
        self.records.write(out, None).unwrap_or(0)
    }
}

/// Room that [`Session::seal`] may need for so many bytes.
pub fn sealed_bytes_max(plain: usize) -> usize {
    plain + plain / RECORD_BYTES_MAX * RECORD_OVERHEAD_MAX + SEAL_ROOM - RECORD_BYTES_MAX
}

impl Records {
    /// Feeds `input` until no whole record is left of it, or `take` wants no more.
    fn run(&mut self, input: &mut [u8], take: &mut dyn FnMut(&[u8]) -> bool) -> Result<Opened, SessionError> {
        let (mut used, mut wanted) = (0, true);
        while wanted {
            let (discard, turn) = self.turn(&mut input[used..], &mut |bytes| wanted = take(bytes));
            used += discard;
            match turn {
                Ok(Turn::Again) => {}
                Ok(Turn::NeedInput) => break,
                Err(error) => {
                    self.last_words(&mut input[used..]);
                    return Err(error.into());
                }
            }
        }
        let handshaking = self.tls.is_handshaking();
        if wanted && !handshaking && !self.ended && starts_with_record(&input[used..]) {
            return Err(SessionError::Pieces);
        }
        Ok(Opened { used, ended: self.ended })
    }

    fn turn(
        &mut self,
        input: &mut [u8],
        take: &mut dyn FnMut(&[u8]),
    ) -> (usize, Result<Turn, rustls::Error>) {
        let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(input);
        let turn = match state {
            Err(error) => Err(error),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                match traffic.next_record() {
                    None => break Ok(Turn::Again),
                    Some(Err(error)) => break Err(error),
                    Some(Ok(record)) => {
                        discard += record.discard;
                        take(record.payload);
                    }
                }
            },
            Ok(ConnectionState::EncodeTlsData(message)) => {
                encode(message, &mut self.output);
                Ok(Turn::Again)
            }
            Ok(ConnectionState::TransmitTlsData(sent)) => {
                // What was encoded is in `output`, in its order.
                sent.done();
                Ok(Turn::Again)
            }
            Ok(ConnectionState::PeerClosed) => {
                self.ended = true;
                Ok(Turn::NeedInput)
            }
            Ok(ConnectionState::ReadEarlyData(_)) => {
                Err(rustls::Error::General("early data that nobody has allowed".to_owned()))
            }
            // Blocked, or nothing but traffic of ours may follow.
            Ok(_) => Ok(Turn::NeedInput),
        };
        (discard, turn)
    }

    /// After an error the library has one message left: the alert that says why.
    fn last_words(&mut self, input: &mut [u8]) {
        if let Ok(ConnectionState::EncodeTlsData(message)) = self.tls.process_tls_records(input).state {
            encode(message, &mut self.output);
        }
    }

    /// Encrypts one record, or the goodbye, behind what waits to be sent; tells how many bytes of `out` are used.
    fn write(&mut self, out: &mut [u8], plain: Option<&[u8]>) -> Result<usize, SessionError> {
        let mut at = self.output.len().min(out.len());
        out[..at].copy_from_slice(&self.output[..at]);
        self.output.drain(..at);
        loop {
            // Nothing of the input is kept by the library here: see the module.
            match self.tls.process_tls_records(&mut []).state? {
                ConnectionState::EncodeTlsData(mut message) => {
                    at += message.encode(&mut out[at..]).map_err(|_| SessionError::UsedUp)?;
                }
                ConnectionState::TransmitTlsData(sent) => sent.done(),
                ConnectionState::PeerClosed => self.ended = true,
                ConnectionState::WriteTraffic(mut traffic) => {
                    let written = match plain {
                        Some(plain) => traffic.encrypt(plain, &mut out[at..]),
                        None => traffic.queue_close_notify(&mut out[at..]),
                    };
                    return Ok(at + written.map_err(used_up)?);
                }
                _ => return Err(SessionError::UsedUp),
            }
        }
    }
}

fn used_up(_: EncryptError) -> SessionError {
    SessionError::UsedUp
}

fn encode(mut message: EncodeTlsData<'_, ServerConnectionData>, output: &mut Vec<u8>) {
    let at = output.len();
    if let Err(EncodeError::InsufficientSize(short)) = message.encode(&mut []) {
        output.resize(at + short.required_size, 0);
        let written = message.encode(&mut output[at..]).unwrap_or(0);
        output.truncate(at + written);
    }
}

/// The input begins with a whole record.
fn starts_with_record(input: &[u8]) -> bool {
    let Some(header) = input.first_chunk::<RECORD_HEADER_BYTES>() else { return false };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    input.len() >= RECORD_HEADER_BYTES + length
}

/// Memory to be filled in order.
struct Targets<'a> {
    first: &'a mut [u8],
    second: &'a mut [u8],
    filled: usize,
}

impl Targets<'_> {
    fn room(&self) -> usize {
        self.first.len() + self.second.len() - self.filled
    }

    /// Copies what there is room for; tells how much.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let in_first = self.first.len().saturating_sub(self.filled).min(bytes.len());
        let (head, tail) = bytes.split_at(in_first);
        let start = self.filled.min(self.first.len());
        self.first[start..start + in_first].copy_from_slice(head);
        self.filled += in_first;
        let at = self.filled - self.first.len().min(self.filled);
        let in_second = (self.second.len() - at).min(tail.len());
        self.second[at..at + in_second].copy_from_slice(&tail[..in_second]);
        self.filled += in_second;
        in_first + in_second
    }
}
