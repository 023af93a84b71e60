//! The program under test, as a user runs it: a configuration file, ports, logs and `/proc`.

use super::client::Client;
use super::io::Certificate;
use super::origin::Origin;
use super::{Value, eventually, json, within};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::{fs, thread};
use tempfile::TempDir;
use tokio::sync::watch;

/// The access log of every test: a template of design §5's variables.
const FIELDS: [&str; 9] = [
    "request_method",
    "request_uri",
    "status",
    "body_bytes_sent",
    "request_time",
    "route",
    "upstream_addr",
    "upstream_status",
    "upstream_response_time",
];

/// The stock binary.
pub const MILLPOND: &str = env!("CARGO_BIN_EXE_millpond");

/// Where a proxy listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub http: SocketAddr,
    pub tls: SocketAddr,
    pub admin: SocketAddr,
}

impl Ports {
    /// Three ports that are free now. Somebody may take one before the proxy does; [`Setup::start`] then tries others.
    pub fn free() -> Self {
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listeners = [bind(), bind(), bind()];
        let [http, tls, admin] = listeners.map(|listener| listener.local_addr().unwrap());
        Ports { http, tls, admin }
    }
}

/// A proxy's private folder, there before the proxy is.
pub struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("millpond-it-").tempdir().unwrap();
        fs::create_dir(dir.path().join("temp")).unwrap();
        Files(dir)
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    /// `temp_path`.
    pub fn temp(&self) -> PathBuf {
        self.0.path().join("temp")
    }
}

/// A configuration in the making: upstream `app`, service `web` with one route to it.
pub struct Setup {
    pub files: Files,
    program: PathBuf,
    top: Value,
    tls: Option<Value>,
    temp_mount: Option<&'static str>,
}

impl Setup {
    /// Merge into the top of the file.
    pub fn top(mut self, value: Value) -> Self {
        merge(&mut self.top, value);
        self
    }

    /// Merge into `upstreams.app`.
    pub fn upstream(mut self, value: Value) -> Self {
        merge(&mut self.top["upstreams"]["app"], value);
        self
    }

    /// Merge into the service.
    pub fn service(mut self, value: Value) -> Self {
        merge(&mut self.top["services"][0], value);
        self
    }

    /// Merge into the only route.
    pub fn route(mut self, value: Value) -> Self {
        merge(&mut self.top["services"][0]["routes"][0], value);
        self
    }

    /// Replace the routes.
    pub fn routes(mut self, value: Value) -> Self {
        self.top["services"][0]["routes"] = value;
        self
    }

    /// Listen for TLS too, with HTTP/2, on [`Ports::tls`]; the certificate is chosen by SNI.
    pub fn tls(mut self, certificates: &[&Certificate]) -> Self {
        let files = certificates.iter().enumerate().map(|(i, certificate)| {
            let (cert_file, key_file) = certificate.write(self.files.dir(), &format!("server{i}"));
            json!({ "cert_file": cert_file, "key_file": key_file })
        });
        self.tls = Some(files.collect());
        self
    }

    /// Put a tmpfs with these mount options at `temp_path`, in a mount namespace that ends with the proxy.
    pub fn temp_mount(mut self, options: &'static str) -> Self {
        self.temp_mount = Some(options);
        self
    }

    /// Run this binary instead of the stock one; it takes the same command line.
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = program;
        self
    }

    /// Start it, and return once it accepts connections.
    pub async fn start(self) -> Proxy {
        for _ in 0..10 {
            let ports = Ports::free();
            let config = self.files.dir().join("proxy.yaml");
            fs::write(&config, serde_json::to_vec_pretty(&self.resolved(&ports)).unwrap()).unwrap();
            let mut command = self.command();
            command.arg("-c").arg(&config);
            let mut process = Process::spawn(&mut command);
            if process.listens_at(&[ports.http, ports.admin]).await {
                return Proxy { ports, files: self.files, process };
            }
            let log = process.log();
            assert!(log.contains("in use"), "the proxy ended:\n{log}");
        }
        panic!("no free ports");
    }

    /// The file as it is written.
    pub fn resolved(&self, ports: &Ports) -> Value {
        let mut config = json!({
            "server": { "threads": 2 },
            "admin": { "listen": ports.admin },
            "access_log": {
                "path": self.files.dir().join("access.log"),
                "format": FIELDS.map(|field| format!("${field}")).join("|"),
            },
            "temp_path": self.files.temp(),
        });
        merge(&mut config, self.top.clone());
        let mut listen = vec![json!(ports.http)];
        if let Some(certificates) = &self.tls {
            listen.push(json!({ "address": ports.tls, "tls": certificates, "h2": true }));
        }
        config["services"][0]["listen"] = listen.into();
        config
    }

    fn command(&self) -> Command {
        let Some(options) = self.temp_mount else { return Command::new(&self.program) };
        let root = fs::metadata("/proc/self").unwrap().uid() == 0;
        let mut command = Command::new("unshare");
        command.arg(if root { "-m" } else { "-rm" }).args(["sh", "-ec"]);
        command.arg(format!("mount -t tmpfs -o {options} tmpfs {} && exec \"$0\" \"$@\"", self.files.temp().display()));
        command.arg(&self.program);
        command
    }
}

/// A route to `app`, which speaks a key-value protocol: all of the path behind the slash is the key.
pub fn key_route(protocol: &str, settings: Value) -> Value {
    let mut route = json!({ "match": { "path_regex": "(?s)^/(.*)$" }, "upstream": "app", protocol: { "key": "$1" } });
    merge(&mut route[protocol], settings);
    route
}

/// A running proxy; killed on drop.
pub struct Proxy {
    pub ports: Ports,
    pub files: Files,
    process: Process,
}

impl Proxy {
    /// A proxy whose only route leads to this origin.
    pub fn to(origin: &Origin) -> Setup {
        Self::to_all(json!([origin.address()]))
    }

    /// A proxy whose only route leads to these servers.
    pub fn to_all(servers: Value) -> Setup {
        Setup {
            files: Files::new(),
            program: MILLPOND.into(),
            top: json!({
                "upstreams": { "app": { "servers": servers } },
                "services": [{ "name": "web", "routes": [{ "upstream": "app" }] }],
            }),
            tls: None,
            temp_mount: None,
        }
    }

    /// A proxy to these servers of a key-value protocol.
    pub fn to_keys(servers: Value, protocol: &str, settings: Value) -> Setup {
        Self::to_all(servers).upstream(json!({ "protocol": protocol })).routes(json!([key_route(protocol, settings)]))
    }

    /// Run the stock binary with these arguments to its end.
    pub fn run(args: &[&str]) -> Output {
        Command::new(MILLPOND).args(args).env_remove("RUST_LOG").stdin(Stdio::null()).output().unwrap()
    }

    /// An HTTP/1 connection.
    pub async fn connect(&self) -> Client {
        Client::connect(self.ports.http).await
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Everything on standard error so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Wait for a log line that contains all of `words`.
    pub async fn wait_log(&self, words: &[&str]) {
        let mut changed = self.process.changed.clone();
        let found = || self.process.log().lines().any(|line| words.iter().all(|word| line.contains(word)));
        within(&format!("a log line with {words:?}"), async {
            while !found() {
                changed.changed().await.expect("the proxy runs");
            }
        })
        .await;
    }

    /// Wait until the access log has `count` lines, and read them.
    pub async fn access_log(&self, count: usize) -> Vec<Access> {
        let path = self.files.dir().join("access.log");
        eventually(&format!("{count} lines in the access log"), async || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
            (lines.len() >= count).then(|| lines.into_iter().map(|line| Access(line.trim_end().to_owned())).collect())
        })
        .await
    }

    /// The metrics page.
    pub async fn metrics(&self) -> String {
        let response = Client::connect(self.ports.admin).await.get("/metrics").await;
        assert_eq!(response.status, 200);
        response.text()
    }

    /// The sum of this metric's samples that have these labels; `None` if there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let page = self.metrics().await;
        let samples = page.lines().filter_map(|line| {
            let (sample, value) = line.rsplit_once(' ')?;
            let (metric, rest) = sample.split_once('{').unwrap_or((sample, ""));
            let matches = labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")));
            (metric == format!("millpond_{name}") && matches).then(|| value.parse::<f64>().unwrap())
        });
        samples.fold(None, |sum, value| Some(sum.unwrap_or_default() + value))
    }

    /// What `/status.json` says of the peer of `app` with this address.
    pub async fn peer_status(&self, address: &str) -> Option<Value> {
        let status = Client::connect(self.ports.admin).await.get("/status.json").await.text();
        let status: Value = serde_json::from_str(&status).unwrap();
        let peers = status["upstreams"]["app"]["peers"].as_array().unwrap();
        peers.iter().find(|peer| peer["address"] == address).cloned()
    }

    /// Change the configuration file, send SIGHUP, and return once the new configuration is in use.
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

    /// Bytes of memory this process does not share with its file on disk.
    pub fn memory(&self) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// The sizes of the unlinked files in `temp_path` that the process holds open.
    pub fn temp_files(&self) -> Vec<u64> {
        let dir = self.files.temp();
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid())).into_iter().flatten().flatten();
        let ours = fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(&dir)));
        ours.filter_map(|fd| fs::metadata(fd.path()).ok()).filter(|file| file.is_file()).map(|f| f.len()).collect()
    }

    /// Bytes in temporary files.
    pub fn temp_file_bytes(&self) -> u64 {
        self.temp_files().iter().sum()
    }

    /// Open file descriptors.
    pub fn fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Send a signal by name.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// kill -9, and return the folder it leaves behind.
    pub fn kill9(mut self) -> Files {
        self.process.child.kill().unwrap();
        self.process.child.wait().unwrap();
        std::mem::replace(&mut self.files, Files::new())
    }

    /// Has it ended, and how?
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.process.child.try_wait().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if thread::panicking() {
            let config = fs::read_to_string(self.files.dir().join("proxy.yaml")).unwrap_or_default();
            let access = fs::read_to_string(self.files.dir().join("access.log")).unwrap_or_default();
            eprintln!("--- configuration\n{config}\n--- access log\n{access}\n--- log\n{}", self.log());
        }
    }
}

/// A line of the access log.
#[derive(Debug)]
pub struct Access(String);

impl Access {
    /// The line.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// A variable's value, by its name without the dollar.
    pub fn field(&self, name: &str) -> &str {
        let index = FIELDS.iter().position(|field| *field == name).expect("a field of the log");
        self.0.split('|').nth(index).unwrap_or_else(|| panic!("a log line of another form: {}", self.0))
    }
}

/// A child process whose output is read as it comes; killed on drop.
pub struct Process {
    pub child: Child,
    lines: Arc<Mutex<String>>,
    changed: watch::Receiver<()>,
}

impl Process {
    /// Start it, with the log level it has when nobody asks for another.
    pub fn spawn(command: &mut Command) -> Self {
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let lines = Arc::new(Mutex::new(String::new()));
        let (notify, changed) = watch::channel(());
        collect(child.stdout.take().unwrap(), &lines, &notify);
        collect(child.stderr.take().unwrap(), &lines, &notify);
        Process { child, lines, changed }
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        self.lines.lock().unwrap().clone()
    }

    /// Wait until it accepts connections at all of `addrs`: true; or has ended, or found a port taken: false.
    pub async fn listens_at(&mut self, addrs: &[SocketAddr]) -> bool {
        for addr in addrs {
            let what = format!("it listens at {addr}");
            let ready = eventually(&what, async || {
                if self.child.try_wait().unwrap().is_some() || self.log().contains("in use") {
                    return Some(false);
                }
                listens(self.child.id(), addr.port()).then_some(true)
            });
            if !ready.await {
                return false;
            }
        }
        true
    }
}

/// Does this very process listen there? Another test's may, if it took the port first; Pingora would try again and
/// again.
fn listens(pid: u32, port: u16) -> bool {
    // Java listens on IPv6 sockets for IPv4 addresses too.
    let tables =
        ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default());
    let fds: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().collect();
    tables.iter().flat_map(|table| table.lines()).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, "0A", .., _] = fields[..] else { return false };
        let socket = format!("socket:[{}]", fields.get(9).unwrap_or(&""));
        local.ends_with(&format!(":{port:04X}"))
            && fds.iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == socket.as_str()))
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(from: impl std::io::Read + Send + 'static, lines: &Arc<Mutex<String>>, notify: &watch::Sender<()>) {
    let (lines, notify) = (lines.clone(), notify.clone());
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let mut all = lines.lock().unwrap();
            all.push_str(&String::from_utf8_lossy(&line));
            all.push('\n');
            drop(all);
            notify.send_replace(());
        }
    });
}

/// Objects are merged key by key; anything else is replaced.
fn merge(into: &mut Value, value: Value) {
    match (into, value) {
        (Value::Object(into), Value::Object(value)) => {
            for (key, value) in value {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, value) => *into = value,
    }
}
