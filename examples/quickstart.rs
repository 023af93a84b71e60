//! See it work: an origin, the proxy and the admin pages in one process, and four lines to try. `make run` starts it.
//!
//! `ORIGIN`, `LISTEN` and `ADMIN` in the environment choose other addresses than those of `conf/quickstart.yaml`.

use millpond::Millpond;
use millpond::conf::Conf;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;

const CONF: &str = include_str!("../conf/quickstart.yaml");
static PIECE: [u8; 64 * 1024] = [b'.'; 64 * 1024];
const DOWNLOAD: usize = 100 * 1024 * 1024;

fn main() -> ExitCode {
    let address = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let origin = address("ORIGIN", "127.0.0.1:8080");
    let listen = address("LISTEN", "127.0.0.1:8000");
    let admin = address("ADMIN", "127.0.0.1:9145");
    let conf =
        CONF.replace("127.0.0.1:8080", &origin).replace("127.0.0.1:8000", &listen).replace("127.0.0.1:9145", &admin);
    let conf = match Conf::parse(&conf, "conf/quickstart.yaml") {
        Ok(conf) => conf,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::FAILURE;
        }
    };
    match TcpListener::bind(&origin) {
        Ok(listener) => {
            let origin = origin.clone();
            std::thread::spawn(move || serve(&listener, &origin))
        }
        Err(error) => {
            eprintln!("the origin cannot listen on {origin}: {error}; choose another with ORIGIN=127.0.0.1:PORT");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "Millpond listens on http://{listen}, its admin pages are on http://{admin}. Ctrl-C stops it. Try:

  curl -i http://{listen}/
      a page from the origin; request_id has added X-Request-Id to it

  curl -o /dev/null --limit-rate 1M http://{listen}/download
      100 MiB for a slow client; within a second the next line, in another terminal, shows that no connection to the
      origin is active any more: what the client has not taken yet is in memory and in a temporary file

  curl -s http://{admin}/metrics | grep -E '^millpond_(upstream_connections|pipe_)'
      the metrics

  diff <(curl -s http://{origin}/) <(curl -s http://{listen}/)
      a filter's effect: sub has made the origin's own address in the page a relative one
"
    );
    Millpond::new().conf(conf).run()
}

/// An origin as small as one can be: a thread per connection, one request after the other.
fn serve(listener: &TcpListener, origin: &str) {
    let page = format!("<html><body>Hello. <a href=\"http://{origin}/download\">100 MiB</a></body></html>\n");
    for stream in listener.incoming().flatten() {
        let page = page.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(&stream);
            while let Some(path) = request(&mut reader) {
                if answer(&stream, &path, &page).is_err() {
                    break;
                }
            }
        });
    }
}

/// The path of the next request; its headers are skipped, bodies are not expected.
fn request(reader: &mut BufReader<&TcpStream>) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if line == "\r\n" {
            return Some(path);
        }
    }
}

fn answer(mut stream: &TcpStream, path: &str, page: &str) -> std::io::Result<()> {
    if path == "/download" {
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {DOWNLOAD}\r\n\r\n"
        )?;
        return (0..DOWNLOAD / PIECE.len()).try_for_each(|_| stream.write_all(&PIECE));
    }
    let length = page.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\r\n{page}")
}
