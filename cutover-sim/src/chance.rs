//! How bad the world of one seed is.

use fastrand::Rng;

/// Microseconds of virtual time.
pub type Micros = u64;

/// A millisecond.
pub const MS: Micros = 1000;
/// A second.
pub const S: Micros = 1000 * MS;

/// Drawn once for each seed: some worlds are quiet, some lose half of everything.
#[derive(Clone, Debug)]
pub(crate) struct Chance {
    pub(crate) loss: f64,
    pub(crate) twice: f64,
    pub(crate) delay_max: Micros,
    /// Between two faults, about; `None`: there are none.
    pub(crate) faults_every: Option<Micros>,
    /// A blockd is long in doing what it was asked.
    pub(crate) slow: f64,
    /// QEMU fails where it may.
    pub(crate) qemu_fails: f64,
    /// Moves.
    pub(crate) moves: u8,
    /// Somebody wants a move undone.
    pub(crate) wish: f64,
}

impl Chance {
    pub(crate) fn draw(rng: &mut Rng, moves_max: u8) -> Self {
        let often = |rng: &mut Rng| rng.choice([0.0, 0.02, 0.1, 0.4]).expect("not empty");
        Self {
            loss: often(rng),
            twice: often(rng),
            delay_max: rng.choice([MS, 20 * MS, 300 * MS]).expect("not empty"),
            faults_every: rng
                .choice([None, Some(50 * MS), Some(200 * MS), Some(500 * MS), Some(2 * S)])
                .expect("not empty"),
            slow: rng.choice([0.0, 0.0, 0.02, 0.1]).expect("not empty"),
            qemu_fails: often(rng),
            moves: rng.u8(1..=moves_max),
            wish: often(rng),
        }
    }

    /// From now on all is well.
    pub(crate) fn calm(&mut self) {
        (self.loss, self.twice, self.slow, self.qemu_fails, self.wish) = (0.0, 0.0, 0.0, 0.0, 0.0);
        self.faults_every = None;
    }
}
