//! `vmctl report`: a move as a certificate.

use super::migrate::{VmArgs, bytes};
use super::{Context, Trying, output};
use crate::cutover::event::SourceOutcome;
use crate::exit_code;
use crate::failure::Failure;
use crate::moves::reason_text;
use crate::moves::record::{MoveRecord, Side};

pub(super) async fn report(context: &Context, args: VmArgs) -> Result<(), Failure> {
    let moves = context.client.moves(Some(&args.vm)).await.trying(|| "cannot list moves".to_owned())?;
    let Some(record) = moves.last() else {
        let what = format!("{} has not been moved", args.vm);
        return Err(Failure::new(exit_code::NOT_FOUND, what, "this agent knows of no move", "vmctl vm list"));
    };
    if !context.for_people() {
        return output::object(record);
    }
    output::pairs(&certificate(record))
}

/// What a move was, to be kept: who, which epochs, which content, how long.
fn certificate(record: &MoveRecord) -> Vec<(&'static str, String)> {
    let numbers = &record.numbers;
    let ms = |ms: f64| format!("{ms:.1} ms");
    let mut pairs = vec![("vm", record.vm.to_string()), ("move", record.id.to_string())];
    let (from, to) = match record.side {
        Side::Source => ("this host".to_owned(), record.host.clone()),
        Side::Destination => (record.host.clone(), "this host".to_owned()),
    };
    pairs.push(("way", format!("{from} → {to}")));
    pairs.push(("phase", record.phase.name().to_owned()));
    let outcome = match (&record.source_end, &record.destination_end, &record.failure) {
        (Some(SourceOutcome::Moved(_)), ..) => "moved: committed by the source".to_owned(),
        (Some(SourceOutcome::Aborted { reason, guest }), ..) => {
            format!("undone: {}; guest {guest:?}", reason_text(reason))
        }
        (None, Some(end), _) => format!("{end:?}"),
        (None, None, Some(failure)) => format!("not begun: {failure}"),
        (None, None, None) => "under way".to_owned(),
    };
    pairs.push(("outcome", outcome));
    if let Some(SourceOutcome::Moved(commit)) = &record.source_end {
        pairs.push(("epoch", format!("{} → {}", commit.epoch.0, commit.epoch.0 + 1)));
        pairs.extend(
            commit
                .snapshots
                .iter()
                .map(|last| ("root", format!("{}  {} (equal on both)", last.volume, last.root))),
        );
    }
    pairs.extend(numbers.silence_ms.map(|silence| ("silence", ms(silence))));
    if let Some(told) = numbers.forecast {
        let wake =
            if told.wake_ms > 0.0 { format!(", to be heard {:.0}", told.wake_ms) } else { String::new() };
        let (disk, memory, fixed) = (told.disk_ms, told.memory_ms, told.fixed_ms);
        let learnt = match told.correction {
            1.0 => String::new(),
            ratio => format!(", times {ratio:.2} as the last moves went"),
        };
        let parts = format!("disk {disk:.0}, memory {memory:.0}, fixed {fixed:.0}{learnt}{wake}");
        pairs.push(("forecast", format!("{} ({parts}); pressure {:.2}", ms(told.silence_ms), told.pressure)));
    }
    let rounds = numbers.rounds.iter().chain(&numbers.last_round);
    pairs.extend(rounds.enumerate().map(|(number, round)| {
        let (changed, sent) = (bytes(round.bytes_changed), bytes(round.bytes_sent));
        ("round", format!("{number}: {changed} changed, {sent} sent, {}", ms(round.ms)))
    }));
    if let Some(mirror) = numbers.mirror {
        let (sent, took) = (bytes(mirror.bytes_sent), ms(mirror.took_ms));
        pairs.push((
            "mirror",
            format!("in sync after {took} and {sent}, {} after the begin", ms(mirror.in_sync_ms)),
        ));
    }
    if numbers.memory_total > 0 {
        let (sent, total) = (bytes(numbers.memory_bytes), bytes(numbers.memory_total));
        let spread = match numbers.multifd_bytes {
            0 => String::new(),
            count => format!(", {} of it through multifd", bytes(count)),
        };
        pairs.push(("memory", format!("{sent} sent of {total}, {} passes{spread}", numbers.memory_passes)));
    }
    pairs.extend(numbers.total_ms.map(|total| ("whole", ms(total))));
    pairs.extend(
        numbers.instants.iter().map(|instant| ("at", format!("{:>10.1} ms  {:?}", instant.ms, instant.mark))),
    );
    pairs.extend(record.notes.iter().map(|note| ("note", note.clone())));
    pairs
}
