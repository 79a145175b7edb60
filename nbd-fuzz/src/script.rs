//! A story out of decisions: who sends what, what arrives when, how the disk behaves, and who leaves.

use std::time::Duration;

use nbd_server::file_export::FileGeometry;

use crate::Verdict;
use crate::choices::Choices;
use crate::disk::How;
use crate::pieces::Pieces;
use crate::transmission::requests::Requests;
use crate::transmission::setting::{EXPORT_BYTES, Setting};
use crate::world::{Medium, World};

/// Steps of one story.
pub const STEPS_MAX: usize = 300;
/// Requests of one story.
const REQUESTS_MAX: usize = 60;
/// Bytes that arrive or are read at once, at the end.
const END_BYTES_MIN: usize = 16 << 10;
/// More than the server's patience.
const LONG_TIME: Duration = Duration::from_secs(31);
/// Less.
const SOME_TIME: Duration = Duration::from_secs(16);

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client sends a request.
    Request,
    /// A client sends bytes.
    Raw,
    /// What a client has sent arrives, or some of it.
    Deliver,
    /// A client reads.
    Drain,
    /// The disk has ended something.
    Disk,
    /// Everything that can arrive and be read, does; the disk ends nothing.
    Settle,
    /// A client sends no more.
    HangUp,
    /// A client is gone.
    Reset,
    /// Time passes.
    Wait,
    /// The server stops, or goes on with it.
    Stop,
}

impl Event {
    /// The next one; `rude`: also those after which not everything must be answered.
    pub fn choose(choices: &mut Choices<'_>, rude: bool) -> Self {
        match choices.byte() {
            0..0x50 => Self::Request,
            0x50..0x58 => Self::Raw,
            0x58..0x88 => Self::Deliver,
            0x88..0xac => Self::Drain,
            0xac..0xe0 => Self::Disk,
            0xe4..0xe8 if rude => Self::HangUp,
            0xe8..0xec if rude => Self::Reset,
            0xec..0xf2 if rude => Self::Wait,
            0xf2..0xfc if rude => Self::Stop,
            _ => Self::Settle,
        }
    }
}

/// One story under way.
pub struct Script {
    /// Where it takes place.
    pub world: World,
    requests: Requests,
    asked: usize,
}

impl Script {
    /// In a world with or without clients.
    pub fn new(world: World) -> Self {
        Self { world, requests: Requests::default(), asked: 0 }
    }

    /// What a client sends next, if it has not sent enough.
    pub fn request(&mut self, setting: &Setting, choices: &mut Choices<'_>) -> Vec<u8> {
        self.asked += 1;
        if self.asked > REQUESTS_MAX { Vec::new() } else { self.requests.next(setting, choices) }
    }

    /// Lets an event happen to a client that is in transmission, or to all.
    ///
    /// # Errors
    /// A rule is broken.
    pub fn act(&mut self, event: Event, who: usize, choices: &mut Choices<'_>) -> Verdict {
        match event {
            Event::Request => {
                let setting = self.world.peers()[who].ledger.setting().clone();
                let bytes = self.request(&setting, choices);
                self.world.send(who, &bytes);
            }
            Event::Raw => {
                let bytes = raw(choices);
                self.world.send(who, bytes);
            }
            Event::Deliver => self.world.deliver(who, choices.amount()).map(drop)?,
            Event::Drain => self.world.drain(who, choices.amount()).map(drop)?,
            Event::Disk => self.world.complete(usize::from(choices.byte()), choose_how(choices)).map(drop)?,
            Event::Settle => self.settle()?,
            Event::HangUp => self.world.hang_up(who),
            Event::Reset => self.world.reset(who),
            Event::Wait => self.world.wait(if choices.coin() { LONG_TIME } else { SOME_TIME })?,
            Event::Stop => self.world.stop(choices.below(4) == 3)?,
        }
        Ok(())
    }

    fn settle(&mut self) -> Verdict {
        let mut moved = true;
        while moved {
            moved = false;
            for who in 0..self.world.peers().len() {
                moved |= self.world.deliver(who, usize::MAX)? || self.world.drain(who, usize::MAX)?;
            }
        }
        Ok(())
    }

    /// Everybody leaves.
    ///
    /// # Errors
    /// A rule is broken.
    pub fn finish(mut self, choices: &mut Choices<'_>) -> Verdict {
        let mut pieces = Pieces::choose(choices);
        // Small pieces are the story's: here they would only make the end a long one.
        self.world.finish(|| pieces.size().max(END_BYTES_MIN))
    }
}

/// Bytes as they stand in the input.
pub fn raw<'a>(choices: &mut Choices<'a>) -> &'a [u8] {
    let count = usize::from(choices.byte());
    choices.bytes(count)
}

/// What is served.
pub fn choose_files(choices: &mut Choices<'_>, sizes: &[u64]) -> Medium {
    let bits = choices.byte();
    let transfer_align = [1, 512, 4096][usize::from(bits & 3) % 3];
    let zero_align = if bits & 4 == 0 { transfer_align } else { transfer_align.max(512) * 4 };
    let geometry = FileGeometry { size: EXPORT_BYTES, transfer_align, zero_align };
    Medium::Files(sizes.to_vec(), geometry)
}

fn choose_how(choices: &mut Choices<'_>) -> How {
    match choices.byte() {
        0..0xa0 => How::Well,
        short @ 0xa0..0xd0 => How::Short((usize::from(short) - 0xa0) << 9),
        broken @ 0xd0..0xf0 => How::Broken((usize::from(broken) - 0xd0) << 9),
        _ => How::Refused,
    }
}
