//! Options out of decisions: mostly such as a client may send, and what it then believes to have agreed on.

use fixtures::nbd::client::{context_data, info_data, option, option_message};
use nbd_server::wire::ReplyForm;

use crate::choices::Choices;

/// Names that are asked for, known and not.
const NAMES: [&str; 4] = ["disk", "", "other", "none"];
/// What is asked of contexts.
const QUERIES: [&str; 9] =
    ["base:allocation", "x-fuzz:a", "x-fuzz:b", "base:", "x-fuzz:", "base:other", "x-", "", "none:a"];

/// What a client takes for agreed on. It does not wait for answers, so it may be wrong.
#[derive(Clone, Copy, Debug)]
pub struct Belief {
    /// How replies come.
    pub form: ReplyForm,
    /// The negotiation is over.
    pub entered: bool,
}

impl Default for Belief {
    fn default() -> Self {
        Self { form: ReplyForm::Simple, entered: false }
    }
}

impl Belief {
    /// The next option.
    pub fn option(&mut self, choices: &mut Choices<'_>) -> Vec<u8> {
        match choices.below(16) {
            0 | 1 => self.believe(ReplyForm::Extended, option::EXTENDED_HEADERS),
            2 | 3 => self.believe(ReplyForm::Structured, option::STRUCTURED_REPLY),
            4..=6 => ask_for_contexts(option::SET_META_CONTEXT, choices),
            7 => ask_for_contexts(option::LIST_META_CONTEXT, choices),
            8 | 9 => {
                self.entered = true;
                option_message(option::GO, &ask(choices))
            }
            10 => option_message(option::INFO, &ask(choices)),
            11 => {
                self.entered = true;
                option_message(option::EXPORT_NAME, choices.one_of(&NAMES).as_bytes())
            }
            12 => option_message(option::LIST, &[]),
            13 => {
                self.form = ReplyForm::Simple;
                option_message(option::STARTTLS, &[])
            }
            14 => option_message(option::ABORT, &[]),
            _ => {
                let (number, bytes) = (u32::from(choices.byte()), usize::from(choices.byte()));
                option_message(number, choices.bytes(bytes))
            }
        }
    }

    fn believe(&mut self, form: ReplyForm, number: u32) -> Vec<u8> {
        if self.form != ReplyForm::Extended {
            self.form = form;
        }
        option_message(number, &[])
    }
}

fn ask(choices: &mut Choices<'_>) -> Vec<u8> {
    let bits = choices.byte();
    let kinds: Vec<u16> = (0..6).filter(|kind| bits >> kind & 1 == 1).collect();
    info_data(NAMES[usize::from(bits >> 6)].as_bytes(), &kinds)
}

fn ask_for_contexts(number: u32, choices: &mut Choices<'_>) -> Vec<u8> {
    let name = choices.one_of(&NAMES);
    let count = match choices.byte() {
        0xff => 65,
        few => few % 5,
    };
    let queries: Vec<&str> = (0..count).map(|_| choices.one_of(&QUERIES)).collect();
    option_message(number, &context_data(name.as_bytes(), &queries))
}
