//! A server under measurement: its processes' CPU time and memory, from `/proc`.

use crate::Result;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Linux counts CPU time in these for `/proc`, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;
const PATIENCE: Duration = Duration::from_secs(10);

/// A running server, its children included; stopped when dropped.
pub struct Server {
    /// Where it listens.
    pub addr: SocketAddr,
    child: Child,
    pids: Vec<u32>,
}

impl Server {
    /// Start `command`, which is to listen at `addr`, and wait until it does. That somebody accepts connections there is
    /// not enough: it might be another program, which took the port first, and would be measured in its place.
    ///
    /// # Errors
    /// The program is not there, ends, or does not listen in time.
    pub fn start(addr: SocketAddr, command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("{program}: {error}"))?;
        let mut server = Server { addr, child, pids: Vec::new() };
        let started = Instant::now();
        while !listens(&family(server.child.id())?, addr)? {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("{program}: {status}").into());
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("{program} does not listen at {addr}").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        server.pids = family(server.child.id())?;
        Ok(server)
    }

    /// CPU time that all its threads have used so far, in user and kernel mode.
    pub fn cpu(&self) -> Result<Duration> {
        let ticks = self.pids.iter().map(|pid| cpu_ticks(*pid)).sum::<Result<u64>>()?;
        Ok(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> Result<u64> {
        self.pids.iter().map(|pid| status_bytes(*pid, "VmRSS:")).sum()
    }

    /// The most resident memory since [`forget_peak_memory`](Self::forget_peak_memory), in bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        self.pids.iter().map(|pid| status_bytes(*pid, "VmHWM:")).sum()
    }

    /// The peak is what is resident now.
    pub fn forget_peak_memory(&self) -> Result<()> {
        for pid in &self.pids {
            fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ending nginx's master the hard way would leave its worker behind. The others wait for their clients first.
        let gently = self.pids.len() > 1
            && Command::new("kill").arg(self.child.id().to_string()).status().is_ok_and(|status| status.success());
        if !gently {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// A port that is free now.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// A process and its children.
fn family(parent: u32) -> Result<Vec<u32>> {
    let mut pids = vec![parent];
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse() else { continue };
        // Others come and go meanwhile.
        if stat_field(pid, 4).is_ok_and(|its_parent| its_parent == u64::from(parent)) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Does one of these processes hold the socket that listens at `addr`?
fn listens(pids: &[u32], addr: SocketAddr) -> Result<bool> {
    let sockets = fs::read_to_string("/proc/net/tcp")?;
    let Some(inode) = sockets.lines().find_map(|line| listener_inode(line, addr)) else { return Ok(false) };
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    let holds = |pid: &u32| {
        // A process that has just ended has no files.
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.map(|file| fs::read_link(file.path())).any(|link| link.is_ok_and(|link| link == socket))
    };
    Ok(pids.iter().any(holds))
}

/// The socket's inode, if this line of `/proc/net/tcp` is of the one that listens at `addr`: `0: 0100007F:1F90 … 0A …`.
fn listener_inode(line: &str, addr: SocketAddr) -> Option<&str> {
    const LISTEN: &str = "0A";
    let SocketAddr::V4(addr) = addr else { return None };
    // The address is in the machine's byte order, the port in the usual one.
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(addr.ip().octets()), addr.port());
    let fields: Vec<_> = line.split_whitespace().collect();
    (fields.get(1) == Some(&local.as_str()) && fields.get(3) == Some(&LISTEN)).then(|| fields.get(9).copied())?
}

fn cpu_ticks(pid: u32) -> Result<u64> {
    Ok(stat_field(pid, 14)? + stat_field(pid, 15)?)
}

/// A field of `/proc/PID/stat`, counted as proc(5) does, behind the second one, which is a name in brackets.
fn stat_field(pid: u32, number: usize) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = behind_name.split_whitespace().nth(number - 3).ok_or("/proc/PID/stat is too short")?;
    Ok(field.parse()?)
}

fn status_bytes(pid: u32, key: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).ok_or_else(|| format!("no {key} of {pid}"))?;
    let kibibytes: u64 = line.trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes * 1024)
}
