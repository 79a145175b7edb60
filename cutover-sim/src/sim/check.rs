//! What must hold.

use vmctl::cutover::record::Stage;

use super::Sim;
use crate::blockds::Blockds;

impl<B: Blockds> Sim<B> {
    /// After every event.
    pub(super) fn check(&mut self) {
        self.blockds.check();
        let mut running = 0;
        for pair in self.pairs.values() {
            let released = self.blockds.stage(pair.from, pair.id) == Stage::Released;
            assert!(!(released && pair.qemus.s_runs()), "S runs though its volumes are released");
            running += u32::from(pair.qemus.s_runs() && self.blockds.accepts(pair.from));
            if pair.t_runs() {
                running += 1;
                let stage = self.blockds.stage(pair.from, pair.id);
                assert!(stage != Stage::Frozen && stage != Stage::Aborted, "T runs while A is {stage:?}");
            }
        }
        assert!(running <= 1, "{running} guests run and may write");
    }

    pub(super) fn check_end(&mut self) {
        let open: Vec<_> = self.agents.iter().map(|agent| &agent.open).collect();
        assert!(
            self.is_over(),
            "a minute after the last fault moves are not over: {open:#?} {:#?}",
            self.pairs
        );
        self.blockds.check_end(self.owner, self.acked);
        let running = self.pairs.values().filter(|pair| {
            (pair.qemus.s_runs() && pair.from == self.owner) || (pair.t_runs() && pair.from != self.owner)
        });
        assert_eq!(running.count(), 1, "not one guest runs at the end: {:#?}", self.pairs);
    }
}
