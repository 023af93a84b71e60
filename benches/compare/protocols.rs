//! What is not HTTP behind the proxy: memcached's values, and a page of PHP-FPM's, beside nginx's `memcached_pass` and
//! `fastcgi_pass`.

use crate::process::{Server, free_address};
use crate::proxies::{Proxy, nginx_command};
use crate::report::table;
use crate::{Effort, Result, load};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

const PAGE: &str = "<?php echo 'hello';\n";

/// The servers that answer.
struct Origins {
    memcached: Server,
    php: Server,
}

/// Requests per second and CPU per request through both proxies.
pub fn measure(dir: &Path, effort: &Effort) -> Result<String> {
    let dir = dir.join("protocols");
    fs::create_dir_all(&dir)?;
    let origins = Origins { memcached: memcached()?, php: php_fpm(&dir)? };
    let proxies = [millpond(&dir, &origins)?, nginx(&dir, &origins)?];
    let mut rows = Vec::new();
    for (label, path, connections) in [
        ("memcached, 1 KiB", "/m/1k", load::SMALL_CONNECTIONS),
        ("memcached, 1 MiB", "/m/1m", load::LARGE_CONNECTIONS),
        ("PHP-FPM, a trivial page", "/hello.php", load::LARGE_CONNECTIONS),
    ] {
        rows.extend(load::rows(label, &proxies, effort, path, connections)?);
    }
    let names: Vec<_> = proxies.iter().map(|proxy| proxy.name).collect();
    Ok(table("Other protocols", &names, &rows))
}

fn memcached() -> Result<Server> {
    let address = free_address()?;
    let mut command = Command::new("memcached");
    command.args(["-u", "nobody", "-l", "127.0.0.1", "-U", "0", "-m", "64", "-I", "8m", "-t", "1", "-p"]);
    let server = Server::start(address, command.arg(address.port().to_string()))?;
    for (key, length) in [("/m/1k", 1 << 10), ("/m/1m", 1 << 20)] {
        set(address, key, length)?;
    }
    Ok(server)
}

fn set(address: SocketAddr, key: &str, length: usize) -> Result<()> {
    let mut connection = TcpStream::connect(address)?;
    write!(connection, "set {key} 0 0 {length}\r\n")?;
    connection.write_all(&vec![b'x'; length])?;
    connection.write_all(b"\r\n")?;
    let mut answer = [0; 8];
    connection.read_exact(&mut answer)?;
    match &answer {
        b"STORED\r\n" => Ok(()),
        other => Err(format!("memcached: {}", String::from_utf8_lossy(other)).into()),
    }
}

/// Each connection that a proxy keeps holds a worker: there are enough for both.
fn php_fpm(dir: &Path) -> Result<Server> {
    let address = free_address()?;
    fs::write(dir.join("hello.php"), PAGE)?;
    let conf = format!(
        "[global]\nerror_log = {dir}/fpm.log\ndaemonize = no\n\
         [www]\nuser = www-data\ngroup = www-data\nlisten = {address}\npm = static\npm.max_children = 16\n",
        dir = dir.display(),
    );
    let path = dir.join("fpm.conf");
    fs::write(&path, conf)?;
    let mut command = Command::new("php-fpm8.2");
    Server::start(address, command.args(["-F", "-n", "-y"]).arg(path))
}

fn millpond(dir: &Path, origins: &Origins) -> Result<Proxy> {
    let listen = free_address()?;
    let conf = format!(
        "server: {{ threads: 1 }}\n\
         temp_path: {dir}\n\
         upstreams:\n\
         \x20 cache: {{ protocol: memcached, servers: [ \"{memcached}\" ], keepalive: {{ requests: 1000000000 }} }}\n\
         \x20 php: {{ protocol: fastcgi, servers: [ \"{php}\" ], keepalive: {{ requests: 1000000000 }} }}\n\
         services:\n\
         \x20 - name: bench\n\
         \x20   listen: [ \"{listen}\" ]\n\
         \x20   routes:\n\
         \x20     - {{ match: {{ path: /m/ }}, upstream: cache, memcached: {{ key: $uri }} }}\n\
         \x20     - {{ match: {{ path_regex: '[.]php$' }}, upstream: php, fastcgi: {{ root: \"{dir}\" }} }}\n",
        dir = dir.display(),
        memcached = origins.memcached.addr,
        php = origins.php.addr,
    );
    let path = dir.join("millpond.yaml");
    fs::write(&path, conf)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
    command.arg("-c").arg(path).env("RUST_LOG", "error");
    Ok(Proxy { name: "Millpond", server: Server::start(listen, &mut command)? })
}

fn nginx(dir: &Path, origins: &Origins) -> Result<Proxy> {
    let listen = free_address()?;
    let keepalive = "keepalive 128; keepalive_requests 1000000000;";
    let servers = format!(
        "upstream cache {{ server {memcached}; {keepalive} }}\n\
         upstream php {{ server {php}; {keepalive} }}\n\
         server {{ listen {listen}; root {dir};\n\
         location /m/ {{ set $memcached_key $uri; memcached_pass cache; }}\n\
         location ~ [.]php$ {{ include /etc/nginx/fastcgi_params; fastcgi_keep_conn on;\n\
         fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name; fastcgi_pass php; }} }}\n",
        dir = dir.display(),
        memcached = origins.memcached.addr,
        php = origins.php.addr,
    );
    Ok(Proxy { name: "nginx", server: Server::start(listen, &mut nginx_command(dir, &servers)?)? })
}
