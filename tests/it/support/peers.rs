//! Origins in processes of their own (`tests/it/origin_process.rs`): what a machine that dies leaves behind cannot be
//! played by a task.

use super::eventually;
use super::proxy::Process;
use crate::examples::example;
use socket2::{Domain, Socket, Type};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

/// An origin that answers with its name, at an address that is its own while the value lives, dead or alive.
pub struct OriginProcess {
    pub name: &'static str,
    addr: SocketAddr,
    options: Vec<&'static str>,
    process: Process,
    /// Bound and not listening: nobody else gets the port, and while the process is dead connections are refused.
    _port: Socket,
}

impl OriginProcess {
    /// One that serves at once and well.
    pub async fn start(name: &'static str) -> Self {
        Self::start_with(name, &[]).await
    }

    /// One with these options of the program.
    pub async fn start_with(name: &'static str, options: &[&'static str]) -> Self {
        let port = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        port.set_reuse_address(true).unwrap();
        port.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let addr = port.local_addr().unwrap().as_socket().unwrap();
        let process = run(addr, name, options).await;
        OriginProcess { name, addr, options: options.to_vec(), process, _port: port }
    }

    /// As the configuration names it.
    pub fn address(&self) -> String {
        self.addr.to_string()
    }

    /// The requests that the process, or the last one, has read: method, target, length of the body.
    pub fn requests(&self) -> Vec<String> {
        self.process.log().lines().map(str::to_owned).collect()
    }

    /// Wait until it has read this request.
    pub async fn wait(&self, request: &str) {
        let what = format!("{} reads {request}", self.name);
        eventually(&what, async || self.process.log().lines().any(|line| line == request).then_some(())).await;
    }

    /// SIGKILL. When this returns, its sockets are gone.
    pub fn kill(&mut self) {
        self.process.child.kill().unwrap();
        self.process.child.wait().unwrap();
    }

    /// Send a signal by name; after a STOP it has stopped.
    pub async fn signal(&self, name: &str) {
        let pid = self.process.child.id();
        assert!(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap().success());
        if name == "STOP" {
            eventually("all its threads have stopped", async || {
                let mut threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
                let stopped = |stat: String| stat.rsplit(") ").next().is_some_and(|stat| stat.starts_with('T'));
                threads.all(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(stopped)).then_some(())
            })
            .await;
        }
    }

    /// Start it again at the same address, and return once it listens.
    pub async fn restart(&mut self) {
        self.process = run(self.addr, self.name, &self.options).await;
    }
}

async fn run(addr: SocketAddr, name: &str, options: &[&str]) -> Process {
    let mut command = Command::new(example("origin_process"));
    let mut process = Process::spawn(command.arg(addr.to_string()).arg(name).args(options));
    assert!(process.listens_at(&[addr]).await, "the origin ended:\n{}", process.log());
    process
}
