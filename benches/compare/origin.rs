//! What the proxies proxy to.

use crate::Result;
use crate::process::{Server, free_address};
use crate::proxies::nginx_command;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

/// The kernel's buffers would otherwise take megabytes off a proxy that has none of its own.
pub const SOCKET_BUFFER: u32 = 64 * 1024;

/// nginx serving files `0`, `1k`, `100k` and `64m`.
pub fn files(dir: &Path) -> Result<Server> {
    let listen = free_address()?;
    let dir = dir.join("origin");
    let root = dir.join("files");
    fs::create_dir_all(&root)?;
    for (name, size) in [("0", 0), ("1k", 1 << 10), ("100k", 100 << 10), ("64m", 64 << 20)] {
        fs::write(root.join(name), vec![b'x'; size])?;
    }
    File::open(&root)?.sync_all()?;
    let server = format!("open_file_cache max=16;\nserver {{ listen {listen}; root {}; }}\n", root.display());
    Server::start(listen, &mut nginx_command(&dir, &server)?)
}

/// An origin in this process that knows when a connection has accepted the last byte of a body: `GET /SIZE`.
pub struct Counting {
    /// Where it listens.
    pub addr: SocketAddr,
    served: watch::Receiver<Served>,
}

/// What a counting origin has sent.
#[derive(Clone, Copy, Default)]
struct Served {
    bodies: usize,
    last: Option<Instant>,
}

impl Counting {
    /// Start it on the running Tokio runtime.
    pub fn start() -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let listener = socket.listen(1024)?;
        let addr = listener.local_addr()?;
        let (sender, served) = watch::channel(Served::default());
        let sender = Arc::new(sender);
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let sender = sender.clone();
                // A proxy that closes its connection ends it.
                tokio::spawn(async move { serve(connection, &sender).await });
            }
        });
        Ok(Counting { addr, served })
    }

    /// When the last byte of the `bodies`th body was accepted.
    pub async fn has_sent(&mut self, bodies: usize) -> Result<Instant> {
        let served = self.served.wait_for(|served| served.bodies >= bodies).await?;
        served.last.ok_or_else(|| "no body has been asked for".into())
    }
}

/// One connection: requests without bodies, one behind the other.
async fn serve(mut connection: TcpStream, served: &watch::Sender<Served>) -> Result<()> {
    let mut received = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if connection.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        };
        let size = size_asked_for(&received[..end]).ok_or("a request for /SIZE")?;
        received.drain(..end);
        send(&mut connection, size).await?;
        if size > 0 {
            served.send_modify(|served| *served = Served { bodies: served.bodies + 1, last: Some(Instant::now()) });
        }
    }
}

fn size_asked_for(request: &[u8]) -> Option<u64> {
    std::str::from_utf8(request).ok()?.strip_prefix("GET /")?.split(' ').next()?.parse().ok()
}

async fn send(connection: &mut TcpStream, size: u64) -> Result<()> {
    static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];
    connection.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes()).await?;
    let mut left = size;
    while left > 0 {
        let piece = usize::try_from(left).map_or(PIECE.len(), |left| left.min(PIECE.len()));
        connection.write_all(&PIECE[..piece]).await?;
        left -= piece as u64;
    }
    Ok(())
}
