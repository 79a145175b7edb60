//! What exports have served, for Prometheus.

use std::collections::BTreeMap;

use nbd_server::registry::{BUCKETS_US, Class, Counts, Latency, Registry};

use super::metrics::Text;

type Exports = BTreeMap<String, (Counts, u64)>;
/// A counter of an export.
type Counter = fn(&Counts) -> u64;

impl Text {
    /// Of every export that somebody has opened since the start and that still exists.
    pub(super) fn exports(&mut self, registry: &Registry) {
        let exports = registry.exports();
        let counters: [(&str, &str, Counter); 3] = [
            ("blockd_export_read_bytes_total", "Bytes that its clients have read.", |counts| {
                counts.read_bytes
            }),
            ("blockd_export_written_bytes_total", "Bytes that its clients have written.", |counts| {
                counts.written_bytes
            }),
            ("blockd_export_errors_total", "Requests that were answered with an error.", |counts| {
                counts.errors
            }),
        ];
        self.head("blockd_export_connections", "gauge", "Connections to it.");
        for (name, (_, connected)) in &exports {
            self.value("blockd_export_connections", &format!("{{export=\"{name}\"}}"), connected);
        }
        for (metric, help, value) in counters {
            self.head(metric, "counter", help);
            for (name, (counts, _)) in &exports {
                self.value(metric, &format!("{{export=\"{name}\"}}"), value(counts));
            }
        }
        self.latencies(&exports);
    }

    fn latencies(&mut self, exports: &Exports) {
        let metric = "blockd_export_request_seconds";
        let help = "From when a request had come whole to when its reply was handed to the socket.";
        self.head(metric, "histogram", help);
        for (name, (counts, _)) in exports {
            for class in Class::ALL {
                let latency = &counts.latencies[class as usize];
                if latency.count() > 0 {
                    self.histogram(metric, &format!("export=\"{name}\",op=\"{}\"", class.name()), latency);
                }
            }
        }
    }

    fn histogram(&mut self, metric: &str, labels: &str, latency: &Latency) {
        let mut sum = 0;
        for (bound, count) in BUCKETS_US.iter().zip(latency.buckets) {
            sum += count;
            let bound = seconds(*bound);
            self.value(&format!("{metric}_bucket"), &format!("{{{labels},le=\"{bound}\"}}"), sum);
        }
        let count = latency.count();
        self.value(&format!("{metric}_bucket"), &format!("{{{labels},le=\"+Inf\"}}"), count);
        self.value(&format!("{metric}_sum"), &format!("{{{labels}}}"), seconds(latency.sum_us));
        self.value(&format!("{metric}_count"), &format!("{{{labels}}}"), count);
    }
}

fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_server::client::Client;
    use nbd_server::connection::Nanos;

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_its_count() {
        let registry = Registry::default();
        let entry = registry.enter(Client::unix(), "web", false);
        for us in [3, 20, 20_000_000] {
            entry.meter().answered(Class::Read, Nanos(0), Nanos(us * 1000), Ok(512));
        }
        let mut text = Text::default();
        text.exports(&registry);
        let text = text.into_text();
        for line in [
            "blockd_export_connections{export=\"web\"} 1",
            "blockd_export_read_bytes_total{export=\"web\"} 1536",
            "blockd_export_request_seconds_bucket{export=\"web\",op=\"read\",le=\"0.000016\"} 1",
            "blockd_export_request_seconds_bucket{export=\"web\",op=\"read\",le=\"0.000032\"} 2",
            "blockd_export_request_seconds_bucket{export=\"web\",op=\"read\",le=\"16.777216\"} 2",
            "blockd_export_request_seconds_bucket{export=\"web\",op=\"read\",le=\"+Inf\"} 3",
            "blockd_export_request_seconds_sum{export=\"web\",op=\"read\"} 20.000023",
            "blockd_export_request_seconds_count{export=\"web\",op=\"read\"} 3",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("op=\"write\""), "what nobody has asked for is not told");
    }
}
