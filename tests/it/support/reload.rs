//! Another configuration for a running proxy.

use super::{Proxy, Value, eventually};
use std::fs;

impl Proxy {
    /// Change the file, send SIGHUP, and return once the new configuration is in use.
    pub async fn reload(&self, change: impl FnOnce(&mut Value)) {
        let file = self.files.dir().join("proxy.yaml");
        let mut config = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut config);
        fs::write(&file, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
        let reloads = async || self.metric("config_reloads_total", &[("result", "success")]).await.unwrap_or_default();
        let before = reloads().await;
        self.signal("HUP");
        eventually("the new configuration is in use", async || (reloads().await > before).then_some(())).await;
    }
}
