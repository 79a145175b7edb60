//! VMs that want to come here: whether they can, and which of them are expected.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use super::hub::Moves;
use super::judge::{Check, Judgement, Offer, check_machine, check_processor, digest, free_memory, refusal};
use super::link::say;
use super::record::{MoveRecord, Side};
use crate::agent::events::now_ms;
use crate::cutover::ids::{MoveId, Name, Text};
use crate::cutover::message::Message;
use crate::cutover::record::{Plan, Setup};
use crate::error::{Error, Kind};
use crate::vm::name::VmName;
use crate::vm::qemu::Qemu;

/// VMs that may come and have not yet.
const OFFERS_MAX: usize = 32;
/// How long one may take: the first copy of its disks comes between.
const OFFER_TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Memory that a host keeps for itself.
const MEMORY_KEPT_BYTES: u64 = 64 << 20;

struct Offered {
    offer: Offer,
    from: String,
    until: Instant,
}

/// Those that are expected, by their move.
#[derive(Default)]
pub(super) struct Offers(Mutex<BTreeMap<MoveId, Offered>>);

impl Offers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<MoveId, Offered>> {
        // A panic elsewhere leaves it whole: every change is one insert or remove.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, id: MoveId, from: &str, offer: Offer) -> Result<(), Error> {
        let now = Instant::now();
        let mut offers = self.lock();
        offers.retain(|_, offered| offered.until > now);
        if offers.len() >= OFFERS_MAX && !offers.contains_key(&id) {
            return Err(Error::one_line(Kind::Overloaded, format!("{OFFERS_MAX} VMs are expected already")));
        }
        offers.insert(id, Offered { offer, from: from.to_owned(), until: now + OFFER_TIME_MAX });
        Ok(())
    }

    fn vm_of(&self, id: MoveId) -> Option<VmName> {
        self.lock().get(&id).map(|offered| offered.offer.definition.name.clone())
    }

    /// Expected no longer; what it was, if that host has offered it.
    fn take(&self, id: MoveId, from: &str) -> Option<Offer> {
        self.lock().remove(&id).filter(|offered| offered.from == from).map(|offered| offered.offer)
    }
}

impl Moves {
    /// Whether a VM can come; one that can is expected.
    pub(super) async fn judge(&self, from: &str, offer: Offer) -> Result<Judgement, Error> {
        offer.definition.check()?;
        offer.options.check()?;
        let qemu = Qemu::ask(&self.0.host.config.qemu).await?;
        let mut checks = self.look_at_host(&offer, &qemu).await?;
        checks.extend(self.look_at_volumes(from, &offer).await?);
        let fits = refusal(&offer.definition.name, "this host", &checks).is_ok();
        if let (Some(id), true) = (offer.id, fits) {
            self.0.offers.expect(id, from, offer)?;
        }
        Ok(Judgement { checks, qemu: qemu.version })
    }

    async fn look_at_host(&self, offer: &Offer, qemu: &Qemu) -> Result<Vec<Check>, Error> {
        let definition = &offer.definition;
        let accel = self.0.host.accel.accel(&self.0.host.config.qemu).await?;
        let mut checks = vec![check_machine(offer, qemu), check_processor(offer, qemu.version, accel)];
        let free = free_memory().unwrap_or(u64::MAX).saturating_sub(MEMORY_KEPT_BYTES);
        let needed = definition.memory.0;
        checks.push(if free >= needed {
            Check::good("memory", format!("{} MiB free, {} needed", free >> 20, needed >> 20))
        } else {
            let found = format!("{} MiB free, {} needed", free >> 20, needed >> 20);
            Check::bad("memory", found, "stop something there, or choose another host")
        });
        checks.push(match self.0.registry.view(&definition.name) {
            Ok(view) if view.process.is_some() || view.held_by.is_some() => {
                let found = format!("there is a VM {} there, {}", definition.name, view.state.name());
                Check::bad("name", found, format!("vmctl vm show {}    (there)", definition.name))
            }
            _ => Check::good("name", "free"),
        });
        for file in
            definition.boot.iter().flat_map(|boot| [Some(&boot.kernel), boot.initrd.as_ref()]).flatten()
        {
            if !file.is_file() {
                let shown = file.display();
                checks.push(Check::bad(
                    "boot",
                    format!("{shown} is not there"),
                    format!("copy {shown} there"),
                ));
            }
        }
        Ok(checks)
    }

    async fn look_at_volumes(&self, from: &str, offer: &Offer) -> Result<Vec<Check>, Error> {
        let blockd = &self.0.host.blockd;
        let store = blockd.status().await?.store;
        let mut needed = 0;
        let mut checks = Vec::new();
        for volume in &offer.volumes {
            match blockd.volume(&volume.name).await {
                Ok(info) if info.role != "replica" => {
                    let found = format!("there is a volume {} there that is no replica", volume.name);
                    checks.push(Check::bad(
                        "volume",
                        found,
                        format!("blockctl volume rename {} …    (there)", volume.name),
                    ));
                }
                Ok(_) => checks.push(Check::good("volume", format!("{}: a replica is there", volume.name))),
                Err(error) if error.kind == Kind::NotFound => {
                    needed += volume.size;
                    checks.push(Check::good("volume", format!("{}: comes from {from}", volume.name)));
                }
                Err(error) => return Err(error),
            }
        }
        let free = store.pool_bytes.saturating_sub(store.used_bytes);
        // Thin volumes may need less: blockd says no when it is really full.
        checks.push(Check::good(
            "space",
            format!("{} MiB free, at most {} MiB come", free >> 20, needed >> 20),
        ));
        Ok(checks)
    }

    /// `Prepare` of a move that was offered. Any other one is refused: an agent that was started anew has forgotten what it was
    /// offered, and a source that hears nothing would ask for ever.
    pub(super) async fn begin_destination(&self, from: &str, id: MoveId, plan: Plan, mut stream: UnixStream) {
        let vm = self.0.offers.vm_of(id);
        if let Some(other) = vm.and_then(|vm| self.active_of(&vm)) {
            // It is said again, and the other one ends.
            return tracing::info!(%id, %other, "a move waits for the end of another one of the same VM");
        }
        let offer = match self.0.offers.take(id, from) {
            Some(offer) if is_offered(&offer, &plan) => offer,
            other => {
                let reason = match other {
                    None => "the agent there was started anew meanwhile, and knows nothing of this move",
                    Some(_) => "it was offered something else",
                };
                tracing::warn!(%id, from, reason, "a move is refused");
                let refused = Message::Refused { reason: Text::new(reason) };
                if let Err(error) = say(&mut stream, id, refused).await {
                    tracing::debug!(%error, from, "a refusal was not heard");
                }
                return;
            }
        };
        let record = MoveRecord::new(id, Side::Destination, from, offer.definition, offer.options, now_ms());
        self.run_destination(record, Some((Setup::new(id, plan), stream)));
    }
}

/// Whether a plan is of what was offered.
fn is_offered(offer: &Offer, plan: &Plan) -> bool {
    let volumes: Vec<&str> = offer.definition.volumes().collect();
    let planned: Vec<&str> = plan.volumes.iter().map(Name::as_str).collect();
    digest(&offer.definition).is_ok_and(|digest| digest == plan.digest)
        && planned == volumes
        && plan.vm.as_str() == offer.definition.name.as_str()
}
