//! What commands have done, by their answers.

use blockd::control::{Answer, ControlError, ErrorKind, SnapshotName};

use super::{Asked, Case};
use crate::reference::{CELL_BYTES, Disk, Snapshot, cells};

impl Case {
    pub(super) fn answered(&mut self, asked: Asked, answer: Result<Answer, ControlError>) {
        trace!(self, "{asked:?} {answer:?}");
        if let Err(error) = &answer {
            self.excuse_command(&asked, error);
            if matches!(error.kind, ErrorKind::Io | ErrorKind::NoSpace) {
                self.doubtful.push(asked);
            }
            return;
        }
        if let Ok(Answer::Pinned(pinned)) = answer {
            return self.pinned(pinned);
        }
        let now = self.now();
        self.apply(asked, now);
    }

    fn excuse_command(&mut self, asked: &Asked, error: &ControlError) {
        match error.kind {
            ErrorKind::Io | ErrorKind::NoSpace => {
                self.seen.count("batch failed");
                assert!(self.faults_hit() > 0, "a command fails without cause: {error}");
            }
            // A command before it may have taken what this one names.
            ErrorKind::NotFound | ErrorKind::Busy | ErrorKind::Refused | ErrorKind::BadValue => {}
            ErrorKind::Exists if matches!(asked, Asked::Rename { .. }) => {}
            _ => panic!("{error:?}"),
        }
    }

    /// A command has had its effect.
    pub(super) fn apply(&mut self, asked: Asked, now: u64) {
        match asked {
            Asked::Create { name, size } => {
                self.seen.count("create");
                self.reference.volumes.insert(name, Disk::zeroes(size, now));
            }
            Asked::Grow { name, size } => {
                self.seen.count("grow");
                if let Some(disk) = self.reference.volumes.get_mut(&name) {
                    disk.grow(size.max(disk.cells.len() as u64 * CELL_BYTES));
                }
            }
            Asked::Rename { from, to } => self.renamed(&from, &to),
            Asked::DeleteVolume { name } => {
                self.seen.count("delete volume");
                self.reference.volumes.remove(&name);
            }
            Asked::Cut { names, requested } => self.cut_made(&names, requested, now),
            Asked::DeleteSnapshot { name } => {
                self.seen.count("delete snapshot");
                self.reference.snapshots.remove(&name);
            }
            Asked::Rollback { name } => {
                self.seen.count("rollback");
                let Some(content) = self.reference.snapshots.get(&name).and_then(|s| s.content.clone())
                else {
                    return;
                };
                self.reference.volumes.insert(name.0, Disk::known(content, now));
            }
            Asked::Clone { from, to } => {
                self.seen.count("clone");
                let content = self.reference.snapshots.get(&from).and_then(|s| s.content.clone());
                if let Some(content) = content {
                    self.reference.volumes.insert(to, Disk::known(content, now));
                }
            }
            Asked::Other => {}
        }
    }

    fn renamed(&mut self, from: &str, to: &str) {
        self.seen.count("rename");
        if let Some(disk) = self.reference.volumes.remove(from) {
            self.reference.volumes.insert(to.to_owned(), disk);
        }
        let names: Vec<_> = self.reference.snapshots.keys().filter(|name| name.0 == from).cloned().collect();
        for name in names {
            let snapshot = self.reference.snapshots.remove(&name).expect("it was listed");
            self.reference.snapshots.insert((to.to_owned(), name.1), snapshot);
        }
        if self.failed.iter().any(|name| name == from) {
            self.failed.push(to.to_owned());
        }
    }

    fn cut_made(&mut self, names: &[SnapshotName], requested: u64, now: u64) {
        self.seen.count("snapshot");
        for name in names {
            let Some(disk) = self.reference.volumes.get(&name.volume) else { continue };
            // A volume may have been grown, or be about to be, while the cut was made.
            let mut disk = disk.clone();
            let (_, size, _) = self.world.find_export(&name.to_string()).expect("an acknowledged snapshot");
            disk.cells.truncate(cells(size));
            disk.grow(size);
            let snapshot = Snapshot { disk, requested, answered: now, content: None, cut: requested };
            self.reference.snapshots.insert((name.volume.clone(), name.snapshot.clone()), snapshot);
        }
    }
}
