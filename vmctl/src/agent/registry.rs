//! All VMs of the host.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::events::{Events, now_ms};
use super::owner::{Owner, VmHandle};
use super::view::{AdoptVm, DefineVm, VmState, VmView};
use crate::blockd::Blockd;
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::journal::{FileError, Files, Record, Run};
use crate::qmp::{Client, Connection, Limits};
use crate::vm::accel::{Accel, AccelProbe};
use crate::vm::adopt;
use crate::vm::definition::Definition;
use crate::vm::name::VmName;
use crate::vm::process::Process;
use crate::vm::qemu::Qemu;

/// VMs of one host.
const VMS_MAX: usize = 1024;
/// What all owners share.
pub struct Host {
    /// What the agent was told.
    pub config: Config,
    /// The records.
    pub files: Files,
    /// The store's daemon.
    pub blockd: Blockd,
    /// What happened lately.
    pub events: Events,
    /// What runs processors here.
    pub accel: AccelProbe,
    /// When the agent started, in milliseconds since 1970.
    pub started_ms: u64,
}

enum Entry {
    Vm(VmHandle),
    /// A record that cannot be used: shown, and left alone.
    Damaged(Error),
    /// A name that is being made.
    Reserved,
}

/// All VMs; clones are handles to the same.
#[derive(Clone)]
pub struct Registry {
    host: Arc<Host>,
    entries: Arc<Mutex<BTreeMap<VmName, Entry>>>,
}

/// Gives a name back that was not used.
struct Reservation<'a> {
    registry: &'a Registry,
    name: VmName,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut entries = self.registry.lock();
        if matches!(entries.get(&self.name), Some(Entry::Reserved)) {
            entries.remove(&self.name);
        }
    }
}

impl Registry {
    /// Reads the records and starts an owner for each VM.
    ///
    /// # Errors
    /// The directory cannot be used; a single record that cannot is no error.
    pub fn open(config: Config) -> Result<Self, FileError> {
        let files = Files::open(&config.data)?;
        let host = Arc::new(Host {
            blockd: Blockd::new(&config.blockd_socket),
            accel: AccelProbe::new(config.accel),
            events: Events::default(),
            started_ms: now_ms(),
            files,
            config,
        });
        let mut entries = BTreeMap::new();
        for (name, record) in host.files.read_all()? {
            let entry = match record {
                Ok(record) => Entry::Vm(Owner::spawn(Arc::clone(&host), record)),
                Err(error) => {
                    host.events.record("record_damaged", name.as_str(), error.to_string());
                    Entry::Damaged(error.into())
                }
            };
            entries.insert(name, entry);
        }
        Ok(Self { host, entries: Arc::new(Mutex::new(entries)) })
    }

    /// What all owners share.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmName, Entry>> {
        // A panic elsewhere leaves the map whole: every change of it is one insert or remove.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All VMs, by name.
    pub fn list(&self) -> Vec<VmView> {
        let entries = self.lock();
        entries.iter().filter_map(|(name, entry)| view(name, entry)).collect()
    }

    /// One VM, also one whose record is damaged.
    ///
    /// # Errors
    /// There is none.
    pub fn view(&self, name: &VmName) -> Result<VmView, Error> {
        let entries = self.lock();
        entries.get(name).and_then(|entry| view(name, entry)).ok_or_else(|| no_vm(name))
    }

    /// A VM to ask something of.
    ///
    /// # Errors
    /// There is none, or its record is damaged.
    pub fn vm(&self, name: &VmName) -> Result<VmHandle, Error> {
        match self.lock().get(name) {
            Some(Entry::Vm(handle)) => Ok(handle.clone()),
            Some(Entry::Damaged(error)) => Err(error.clone()),
            Some(Entry::Reserved) | None => Err(no_vm(name)),
        }
    }

    fn reserve(&self, name: &VmName) -> Result<Reservation<'_>, Error> {
        let mut entries = self.lock();
        match entries.get(name) {
            Some(Entry::Damaged(error)) => return Err(error.clone()),
            Some(_) => return Err(Error::one_line(Kind::Exists, format!("there is a VM {name} already"))),
            None if entries.len() >= VMS_MAX => {
                return Err(Error::one_line(
                    Kind::Overloaded,
                    format!("{VMS_MAX} VMs are the most of one host"),
                ));
            }
            None => {}
        }
        entries.insert(name.clone(), Entry::Reserved);
        Ok(Reservation { registry: self, name: name.clone() })
    }

    /// Makes a VM, or replaces the definition of a stopped one.
    ///
    /// # Errors
    /// The definition is wrong, QEMU has no such machine, or the name is taken.
    pub async fn define(&self, request: DefineVm) -> Result<VmView, Error> {
        request.definition.check()?;
        let qemu = Qemu::ask(&self.host.config.qemu).await?;
        let definition = request.definition.resolve(&qemu.machines)?;
        let name = definition.name.clone();
        if request.replace
            && let Ok(vm) = self.vm(&name)
        {
            vm.define(definition).await?;
            self.host.events.record("vm_redefined", name.as_str(), "");
            return self.view(&name);
        }
        let reservation = self.reserve(&name)?;
        let record = Record::new(definition);
        self.host.files.write(&record)?;
        self.insert(record);
        drop(reservation);
        self.host.events.record("vm_defined", name.as_str(), "");
        self.view(&name)
    }

    /// A VM that comes from another host: made, or what an earlier stay has left of it replaced. Its definition is resolved.
    ///
    /// # Errors
    /// There is a VM of that name that runs, is held, or is damaged.
    pub async fn take_in(&self, definition: Definition) -> Result<VmHandle, Error> {
        let name = definition.name.clone();
        if let Ok(vm) = self.vm(&name) {
            vm.define(definition).await?;
            return Ok(vm);
        }
        let reservation = self.reserve(&name)?;
        let record = Record::new(definition);
        self.host.files.write(&record)?;
        self.insert(record);
        drop(reservation);
        self.vm(&name)
    }

    fn insert(&self, record: Record) {
        let name = record.definition.name.clone();
        let handle = Owner::spawn(Arc::clone(&self.host), record);
        self.lock().insert(name, Entry::Vm(handle));
    }

    /// Forgets a VM; its volumes stay.
    ///
    /// # Errors
    /// There is none, or it runs.
    pub async fn delete(&self, name: &VmName) -> Result<(), Error> {
        self.vm(name)?.delete().await?;
        self.lock().remove(name);
        self.host.events.record("vm_deleted", name.as_str(), "");
        Ok(())
    }

    /// Makes a running QEMU a VM of ours.
    ///
    /// # Errors
    /// Its monitor does not answer, it is one of ours already, or its name is taken.
    pub async fn adopt(&self, request: AdoptVm) -> Result<VmView, Error> {
        if !request.qmp.is_absolute() {
            return Err(Error::one_line(
                Kind::BadValue,
                format!("{} is not absolute", request.qmp.display()),
            ));
        }
        let Connection { client, events, greeting } =
            Client::connect(&request.qmp, Limits::default()).await?;
        let process = self.process_of(greeting.pid, &request.qmp)?;
        let nbd_socket = &self.host.config.nbd_socket;
        let found = adopt::look(&client, nbd_socket, request.name.as_ref()).await?;
        let accel = if client.query_kvm().await?.enabled { Accel::Kvm } else { Accel::Tcg };
        let run = Run {
            process: Some(process.id),
            qmp: request.qmp,
            qemu: greeting.version,
            accel,
            incoming: false,
            started_ms: now_ms(),
        };
        let name = found.definition.name.clone();
        let reservation = self.reserve(&name)?;
        let record = Record { run: Some(run), adopted: Some(found.adopted), ..Record::new(found.definition) };
        self.host.files.write(&record)?;
        // A monitor serves one client: ours must go before the owner's comes.
        drop((client, events));
        self.insert(record);
        drop(reservation);
        self.host.events.record("vm_adopted", name.as_str(), "");
        self.settled(&name).await
    }

    fn process_of(&self, pid: Option<i32>, socket: &Path) -> Result<Process, Error> {
        let unclear = || {
            Error::one_line(
                Kind::Refused,
                format!("{}: the process behind it is not known", socket.display()),
            )
        };
        let pid = pid.ok_or_else(unclear)?;
        if let Some(vm) =
            self.list().iter().find(|vm| vm.process.as_ref().is_some_and(|ours| ours.pid == pid))
        {
            return Err(Error::one_line(
                Kind::Exists,
                format!("process {pid} is the VM {} already", vm.name),
            ));
        }
        let process = Process::of_pid(pid).map_err(|error| Error::one_line(Kind::Io, error))?;
        process.ok_or_else(unclear)
    }

    /// What a VM does, once its new owner has looked.
    async fn settled(&self, name: &VmName) -> Result<VmView, Error> {
        let mut view = self.vm(name)?.watch();
        let settled = view.wait_for(|view| view.process.is_some() || view.state != VmState::Unreachable);
        match tokio::time::timeout(Limits::default().greeting, settled).await {
            Ok(Ok(_)) | Ok(Err(_)) | Err(_) => self.view(name),
        }
    }
}

fn no_vm(name: &VmName) -> Error {
    Error::one_line(Kind::NotFound, format!("there is no VM {name}"))
}

fn view(name: &VmName, entry: &Entry) -> Option<VmView> {
    match entry {
        Entry::Vm(handle) => Some(handle.view()),
        Entry::Reserved => None,
        Entry::Damaged(error) => Some(VmView {
            name: name.clone(),
            state: VmState::Damaged,
            reason: Some(error.to_string()),
            definition: None,
            process: None,
            adopted: None,
            held_by: None,
            last_end: None,
        }),
    }
}
