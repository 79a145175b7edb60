//! The end of a case: all of it is looked at, then deleted, and then all space is free again.

use blockd::control::{Answer, Control};

use super::{Asked, Case};
use crate::world::load;

impl Case {
    pub(super) fn finish(&mut self) {
        self.settle();
        self.check_all_snapshots();
        self.crash();
        self.delete_snapshots();
        self.delete_volumes();
        self.check_nothing_left();
        self.seen.count("all space back");
        self.world.count_intents();
        self.seen.count_many("frame", self.world.frames);
        self.seen.count_many("frame found", self.world.frames_found);
        self.seen.count_many("frame unfinished", self.world.frames_unfinished);
        self.seen.count_many("write held", self.world.held);
        self.seen.count_many("checkpoint used", self.world.checkpoints_used);
        self.seen.count_many("checkpoint out of date", self.world.checkpoints_refused);
    }

    fn delete_snapshots(&mut self) {
        let snapshots: Vec<_> = self.reference.snapshots.keys().cloned().collect();
        for name in &snapshots {
            self.read_snapshot(name);
            self.settle();
        }
        for name in snapshots {
            let control = Control::Release { name: Self::control_name(&name), reason: "test".to_owned() };
            self.put(Asked::Other, control);
            let control = Control::DeleteSnapshot { name: Self::control_name(&name) };
            self.put(Asked::DeleteSnapshot { name }, control);
            self.settle();
        }
    }

    fn delete_volumes(&mut self) {
        let volumes: Vec<String> = self.reference.volumes.keys().cloned().collect();
        // While their layers are merged, they read as before.
        for name in &volumes {
            self.check_volume(name);
        }
        for name in volumes {
            self.put(Asked::DeleteVolume { name: name.clone() }, Control::DeleteVolume { name });
            self.settle();
        }
    }

    fn check_nothing_left(&mut self) {
        assert_eq!(self.reference.volumes.len() + self.reference.snapshots.len(), 0, "all was deleted");
        self.settle();
        let token = self.world.command(Control::Status);
        let answers = self.world.take_answers();
        let status = answers.into_iter().find(|(found, _)| *found == token).expect("status").1;
        let Ok(Answer::Status(status)) = status else { panic!("{status:?}") };
        assert_eq!(status.used_bytes, 0, "space was not given back: {status:?}");
        let (loaded, _) = load(&self.world.meta.snapshot());
        assert!(loaded.layers.is_empty(), "layers are left: {:?}", loaded.layers);
    }
}
