//! Bytes spread over time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The longest that a rate is slept off at a time, so that another one takes effect.
const NAP_MAX: Duration = Duration::from_millis(100);

/// Bytes a second; 0: as fast as it goes. Asked again and again: it may change at any time.
pub(super) type Rate = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Lets so many bytes a second through, of all who share it together. What was not used is not saved up, but for a
/// moment.
pub(super) struct Pace {
    rate: Rate,
    /// When the bytes so far are paid for.
    free_at: Mutex<Instant>,
}

impl Pace {
    /// At that rate, from now on.
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, free_at: Mutex::new(Instant::now()) }
    }

    /// Returns when so many bytes may go.
    pub(super) async fn wait(&self, bytes: usize) {
        while let Some(nap) = self.take(bytes) {
            tokio::time::sleep(nap).await;
        }
    }

    /// Takes the turn for so many bytes, or says for how long to sleep before asking again.
    fn take(&self, bytes: usize) -> Option<Duration> {
        let (now, allowed) = (Instant::now(), (self.rate)());
        // A panic elsewhere leaves it whole: it is set in one step.
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        if allowed == 0 {
            *free_at = now;
            return None;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / allowed as f64);
        if *free_at <= now {
            *free_at = (*free_at).max(now.checked_sub(NAP_MAX).unwrap_or(now)) + cost;
            return None;
        }
        // A rate that was raised meanwhile counts for what is left.
        let left = (*free_at - now).min(cost);
        *free_at = now + left;
        Some(left.min(NAP_MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn pace(rate: &Arc<AtomicU64>) -> Arc<Pace> {
        let rate = Arc::clone(rate);
        Arc::new(Pace::new(Arc::new(move || rate.load(Ordering::Relaxed))))
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_and_may_change() {
        let allowed = Arc::new(AtomicU64::new(1000));
        let (pace, begun) = (pace(&allowed), Instant::now());
        for _ in 0..20 {
            pace.wait(500).await;
        }
        let took = begun.elapsed();
        assert!((Duration::from_secs(9)..Duration::from_secs(10)).contains(&took), "{took:?}");
        allowed.store(0, Ordering::Relaxed);
        let begun = Instant::now();
        for _ in 0..1000 {
            pace.wait(1 << 20).await;
        }
        assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_shares_a_pace_shares_its_rate() {
        let (pace, begun) = (pace(&Arc::new(AtomicU64::new(1000))), Instant::now());
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let pace = Arc::clone(&pace);
                tokio::spawn(async move {
                    for _ in 0..5 {
                        pace.wait(500).await;
                    }
                    begun.elapsed()
                })
            })
            .collect();
        let mut last = Duration::ZERO;
        for writer in writers {
            last = last.max(writer.await.unwrap());
        }
        assert!((Duration::from_secs(9)..Duration::from_secs(11)).contains(&last), "{last:?}");
    }
}
