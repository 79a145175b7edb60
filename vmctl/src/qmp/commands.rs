//! The commands that we use, typed. All errors are [`QmpError`]'s.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::types::{
    BlockDevice, BlockNode, BlockStats, DirtyRate, KvmInfo, MachineInfo, MemorySize, MigrationCapability,
    MigrationInfo, MigrationParameters, QomProperty, StatusInfo, VersionInfo,
};
use super::{QmpError, shown};

type Result<T> = std::result::Result<T, QmpError>;

/// An answer without content, or with one that does not matter.
#[derive(Deserialize)]
struct Nothing {}

#[derive(Deserialize)]
struct Named {
    name: Option<String>,
}

impl Client {
    async fn get<T: serde::de::DeserializeOwned>(&self, command: &'static str) -> Result<T> {
        self.run(command, json!({})).await
    }

    async fn tell(&self, command: &'static str, arguments: Value) -> Result<()> {
        self.run::<Nothing>(command, arguments).await.map(|Nothing {}| ())
    }

    /// What the machine does.
    pub async fn query_status(&self) -> Result<StatusInfo> {
        self.get("query-status").await
    }

    /// QEMU's version.
    pub async fn query_version(&self) -> Result<VersionInfo> {
        self.get("query-version").await
    }

    /// Whether KVM is used.
    pub async fn query_kvm(&self) -> Result<KvmInfo> {
        self.get("query-kvm").await
    }

    /// The guest's name (`-name guest=`), escaped.
    pub async fn query_name(&self) -> Result<Option<String>> {
        let named: Named = self.get("query-name").await?;
        Ok(named.name.as_deref().map(shown))
    }

    /// The machine types that this QEMU has.
    pub async fn query_machines(&self) -> Result<Vec<MachineInfo>> {
        self.get("query-machines").await
    }

    /// How much memory the guest has.
    pub async fn query_memory(&self) -> Result<MemorySize> {
        self.get("query-memory-size-summary").await
    }

    /// How many processors the guest has.
    pub async fn query_vcpus(&self) -> Result<usize> {
        Ok(self.get::<Vec<Value>>("query-cpus-fast").await?.len())
    }

    /// All nodes of the block layer.
    pub async fn query_named_block_nodes(&self) -> Result<Vec<BlockNode>> {
        self.run("query-named-block-nodes", json!({ "flat": true })).await
    }

    /// What the guest's disks are backed by.
    pub async fn query_block(&self) -> Result<Vec<BlockDevice>> {
        self.get("query-block").await
    }

    /// A property of an object.
    pub async fn qom_get(&self, path: &str, property: &str) -> Result<Value> {
        self.run("qom-get", json!({ "path": path, "property": property })).await
    }

    /// The properties of an object.
    pub async fn qom_list(&self, path: &str) -> Result<Vec<QomProperty>> {
        self.run("qom-list", json!({ "path": path })).await
    }

    /// Lets the guest's processors run. Never after `postmigrate` unless the move was undone: QEMU obeys, and two run.
    pub async fn cont(&self) -> Result<()> {
        self.tell("cont", json!({})).await
    }

    /// Stops the guest's processors.
    pub async fn stop(&self) -> Result<()> {
        self.tell("stop", json!({})).await
    }

    /// Ends QEMU; the guest is not asked.
    pub async fn quit(&self) -> Result<()> {
        self.tell("quit", json!({})).await
    }

    /// Presses the guest's power button.
    pub async fn system_powerdown(&self) -> Result<()> {
        self.tell("system_powerdown", json!({})).await
    }

    /// Plugs a network card's cable in or out; `name` is the device's id.
    pub async fn set_link(&self, name: &str, up: bool) -> Result<()> {
        self.tell("set_link", json!({ "name": name, "up": up })).await
    }

    /// Tells switches where the guest's addresses are now.
    pub async fn announce_self(&self, rounds: u32, initial_ms: u32, step_ms: u32, max_ms: u32) -> Result<()> {
        let times = json!({ "initial": initial_ms, "max": max_ms, "rounds": rounds, "step": step_ms });
        self.tell("announce-self", times).await
    }

    /// Which capabilities of migration are on.
    pub async fn query_migrate_capabilities(&self) -> Result<Vec<MigrationCapability>> {
        self.get("query-migrate-capabilities").await
    }

    /// Turns capabilities on and off. On the destination before [`migrate_incoming`](Self::migrate_incoming).
    pub async fn migrate_set_capabilities(&self, capabilities: &[(&str, bool)]) -> Result<()> {
        let one = |&(capability, state): &(&str, bool)| json!({ "capability": capability, "state": state });
        let capabilities: Vec<Value> = capabilities.iter().map(one).collect();
        self.tell("migrate-set-capabilities", json!({ "capabilities": capabilities })).await
    }

    /// Changes parameters of migration, as in `downtime-limit`.
    pub async fn migrate_set_parameters(&self, parameters: MigrationParameters) -> Result<()> {
        self.tell("migrate-set-parameters", Value::Object(parameters.into_iter().collect::<Map<_, _>>()))
            .await
    }

    /// Where the migration stands.
    pub async fn query_migrate(&self) -> Result<MigrationInfo> {
        self.get("query-migrate").await
    }

    /// Begins to send the guest to `uri`.
    pub async fn migrate(&self, uri: &str) -> Result<()> {
        self.tell("migrate", json!({ "uri": uri })).await
    }

    /// Waits for a guest at `uri`; QEMU was started with `-incoming defer`.
    pub async fn migrate_incoming(&self, uri: &str) -> Result<()> {
        self.tell("migrate-incoming", json!({ "uri": uri })).await
    }

    /// Goes on from `pre-switchover`. Never [`migrate_cancel`](Self::migrate_cancel) after it.
    pub async fn migrate_continue(&self) -> Result<()> {
        self.tell("migrate-continue", json!({ "state": "pre-switchover" })).await
    }

    /// Ends a migration that has not gone past `pre-switchover`.
    pub async fn migrate_cancel(&self) -> Result<()> {
        self.tell("migrate_cancel", json!({})).await
    }

    /// Continues a post-copy whose connection was lost, out of band.
    pub async fn migrate_recover(&self, uri: &str) -> Result<()> {
        self.run_out_of_band::<Nothing>("migrate-recover", json!({ "uri": uri })).await.map(|Nothing {}| ())
    }

    /// Breaks the migration's connection, out of band: the way out when the peer is gone and no error comes.
    pub async fn yank_migration(&self) -> Result<()> {
        let instances = json!([{ "type": "migration" }]);
        self.run_out_of_band::<Nothing>("yank", json!({ "instances": instances })).await.map(|Nothing {}| ())
    }

    /// Breaks the connection of a block node, out of band.
    pub async fn yank_block_node(&self, node: &str) -> Result<()> {
        let instances = json!([{ "type": "block-node", "node-name": node }]);
        self.run_out_of_band::<Nothing>("yank", json!({ "instances": instances })).await.map(|Nothing {}| ())
    }

    /// Begins to measure how fast the guest dirties its memory, for so many seconds. With `page-sampling`: the first
    /// measure in other modes says that everything is dirty.
    pub async fn calc_dirty_rate(&self, seconds: u32) -> Result<()> {
        self.tell("calc-dirty-rate", json!({ "calc-time": seconds, "mode": "page-sampling" })).await
    }

    /// What [`calc_dirty_rate`](Self::calc_dirty_rate) found.
    pub async fn query_dirty_rate(&self) -> Result<DirtyRate> {
        self.get("query-dirty-rate").await
    }

    /// Bytes that the guest has written to its disks since QEMU was started.
    pub async fn query_written_bytes(&self) -> Result<u64> {
        let disks: Vec<BlockStats> = self.get("query-blockstats").await?;
        Ok(disks.iter().fold(0, |sum, disk| disk.stats.written.saturating_add(sum)))
    }

    /// Opens a block node.
    pub async fn blockdev_add(&self, node: Value) -> Result<()> {
        self.tell("blockdev-add", node).await
    }

    /// Closes a block node that nothing uses.
    pub async fn blockdev_del(&self, node: &str) -> Result<()> {
        self.tell("blockdev-del", json!({ "node-name": node })).await
    }

    /// Opens nodes anew with other options: how a disk's server is exchanged under a running guest.
    pub async fn blockdev_reopen(&self, nodes: Vec<Value>) -> Result<()> {
        self.tell("blockdev-reopen", json!({ "options": nodes })).await
    }
}
