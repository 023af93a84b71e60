//! Real servers as origins, each on a free port with its files in a private folder: Apache, nginx and Tomcat, which
//! speak HTTP; memcached, Redis, PHP-FPM and uWSGI, which do not.

use super::proxy::Process;
use super::{Client, eventually};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// A running server; killed on drop, its workers with it.
pub struct Server {
    pub addr: SocketAddr,
    pub dir: TempDir,
    process: Process,
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = format!("-{}", self.process.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
    }
}

/// Is the program installed? On a build machine it has to be; elsewhere the test says that it is skipped.
pub fn installed(program: &str) -> bool {
    let dirs = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/share/tomcat10/bin";
    let found = dirs.split(':').any(|dir| Path::new(dir).join(program).exists());
    assert!(found || std::env::var_os("CI").is_none(), "{program} is not installed");
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

/// Apache 2.4 with its files in `htdocs`.
pub async fn apache() -> Server {
    start("apache2", |dir, port| {
        let d = dir.display();
        let modules = "/usr/lib/apache2/modules";
        let config = format!(
            "Listen 127.0.0.1:{port}\nServerName test\nServerRoot {d}\nDefaultRuntimeDir {d}\nPidFile {d}/pid\n\
             Mutex file:{d}\nErrorLog {d}/error.log\n\
             LoadModule mpm_event_module {modules}/mod_mpm_event.so\n\
             LoadModule authz_core_module {modules}/mod_authz_core.so\n\
             LoadModule mime_module {modules}/mod_mime.so\n\
             LoadModule filter_module {modules}/mod_filter.so\n\
             LoadModule deflate_module {modules}/mod_deflate.so\n\
             TypesConfig /etc/mime.types\nDocumentRoot {d}/htdocs\nAddOutputFilterByType DEFLATE text/plain\n\
             User www-data\nGroup www-data\n<Directory {d}>\nRequire all granted\n</Directory>\n"
        );
        fs::write(dir.join("httpd.conf"), config).unwrap();
        let mut command = Command::new("/usr/sbin/apache2");
        command.arg("-f").arg(dir.join("httpd.conf")).arg("-DFOREGROUND").process_group(0);
        command
    })
    .await
}

/// nginx with its files in `htdocs`.
pub async fn nginx() -> Server {
    run_nginx("", "").await
}

/// nginx as a proxy; `upstream` is what its `upstream` block says.
pub async fn nginx_in_front_of(upstream: &str) -> Server {
    run_nginx(
        &format!("upstream app {{ {upstream} }}"),
        "location / { proxy_pass http://app; proxy_http_version 1.1; }",
    )
    .await
}

async fn run_nginx(upstream: &str, location: &str) -> Server {
    start("nginx", |dir, port| {
        let d = dir.display();
        let config = format!(
            "daemon off; pid {d}/pid; worker_processes 1; error_log {d}/error.log;\nevents {{}}\n\
             http {{ access_log off; client_body_temp_path {d}/body; proxy_temp_path {d}/proxy;\n\
             fastcgi_temp_path {d}/f; scgi_temp_path {d}/s; uwsgi_temp_path {d}/u; {upstream}\n\
             server {{ listen 127.0.0.1:{port}; root {d}/htdocs; {location} }} }}\n"
        );
        fs::write(dir.join("nginx.conf"), config).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command
            .arg("-p")
            .arg(dir)
            .arg("-c")
            .arg(dir.join("nginx.conf"))
            .arg("-e")
            .arg(dir.join("error.log"))
            .process_group(0);
        command
    })
    .await
}

/// Tomcat 10.1 with `echo.jsp` and static files in its root application.
pub async fn tomcat() -> Server {
    start("catalina.sh", |dir, port| {
        for folder in ["conf", "webapps", "logs", "temp", "work"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        fs::rename(dir.join("htdocs"), dir.join("webapps/ROOT")).unwrap();
        std::os::unix::fs::symlink(dir.join("webapps/ROOT"), dir.join("htdocs")).unwrap();
        fs::copy("/etc/tomcat10/web.xml", dir.join("conf/web.xml")).unwrap();
        let config = format!(
            "<Server port=\"-1\"><Service name=\"Catalina\">\
             <Connector address=\"127.0.0.1\" port=\"{port}\" protocol=\"HTTP/1.1\"/>\
             <Engine name=\"Catalina\" defaultHost=\"localhost\">\
             <Host name=\"localhost\" appBase=\"webapps\"/></Engine>\
             </Service></Server>"
        );
        fs::write(dir.join("conf/server.xml"), config).unwrap();
        let mut command = Command::new("/usr/share/tomcat10/bin/catalina.sh");
        command.arg("run").env("CATALINA_HOME", "/usr/share/tomcat10").env("CATALINA_BASE", dir);
        command.env("CATALINA_TMPDIR", dir.join("temp"));
        command
    })
    .await
}

/// memcached, with values of up to 8 MiB; `more` is its command line's end, as `&["-I", "64m"]`.
pub async fn memcached(more: &[&str]) -> Server {
    spawn("memcached", |_, port| {
        let mut command = Command::new("/usr/bin/memcached");
        command.args(["-u", "nobody", "-l", "127.0.0.1", "-U", "0", "-m", "64", "-I", "8m", "-t", "2", "-p"]);
        command.arg(port.to_string()).args(more).process_group(0);
        command
    })
    .await
}

/// Redis without a disk; `more` is its command line's end, as `&["--requirepass", "secret"]`.
pub async fn redis(more: &[&str]) -> Server {
    spawn("redis-server", |dir, port| redis_command(dir, port, more)).await
}

/// Redis where one has been killed.
pub async fn redis_at(addr: SocketAddr) -> Server {
    eventually("Redis comes back", async || {
        try_spawn("redis-server", addr, |dir, port| redis_command(dir, port, &[])).await
    })
    .await
}

fn redis_command(dir: &Path, port: u16, more: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string(), "--dir"]);
    command.arg(dir).args(more).process_group(0);
    command
}

/// PHP-FPM; its scripts are in `htdocs`. What PHP complains about goes to FastCGI's standard error.
pub async fn php_fpm() -> Server {
    spawn("php-fpm8.2", |dir, port| {
        let d = dir.display();
        let config = format!(
            "[global]\nerror_log = {d}/fpm.log\ndaemonize = no\n\
             [www]\nuser = www-data\ngroup = www-data\nlisten = 127.0.0.1:{port}\npm = static\npm.max_children = 4\n\
             php_admin_value[upload_max_filesize] = 64M\nphp_admin_value[post_max_size] = 64M\n\
             php_admin_value[memory_limit] = 256M\nphp_admin_value[output_buffering] = 0\n\
             php_admin_flag[log_errors] = on\nphp_admin_flag[display_errors] = off\n"
        );
        fs::write(dir.join("fpm.conf"), config).unwrap();
        let mut command = Command::new("/usr/sbin/php-fpm8.2");
        command.args(["-F", "-n", "-y"]).arg(dir.join("fpm.conf")).process_group(0);
        command
    })
    .await
}

/// uWSGI with one Python application behind three protocols.
pub struct Uwsgi {
    pub scgi: SocketAddr,
    pub fastcgi: SocketAddr,
    /// At its address it speaks uwsgi.
    pub server: Server,
}

/// uWSGI, running this WSGI module.
pub async fn uwsgi(application: &str) -> Uwsgi {
    for _ in 0..5 {
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (scgi, fastcgi) = (free(), free());
        let [scgi, fastcgi] = [scgi, fastcgi].map(|listener| listener.local_addr().unwrap());
        let mut server = spawn("uwsgi", |dir, port| {
            fs::write(dir.join("app.py"), application).unwrap();
            let mut command = Command::new("/usr/bin/uwsgi");
            command.args(["--plugin", "python3", "--wsgi-file", "app.py", "--master", "--processes", "2"]);
            command.args(["--uid", "www-data", "--gid", "www-data", "--die-on-term", "--buffer-size", "32768"]);
            command.args(["--uwsgi-socket", &format!("127.0.0.1:{port}"), "--scgi-socket", &scgi.to_string()]);
            command.args(["--fastcgi-socket", &fastcgi.to_string()]).current_dir(dir).process_group(0);
            command
        })
        .await;
        if server.process.listens_at(&[scgi, fastcgi]).await {
            return Uwsgi { scgi, fastcgi, server };
        }
    }
    panic!("uwsgi does not start");
}

/// Write the files and start; it is ready when it answers.
async fn start(name: &str, prepare: impl Fn(&Path, u16) -> Command) -> Server {
    let server = spawn(name, prepare).await;
    eventually(&format!("{name} answers"), async || {
        (Client::connect(server.addr).await.get("/").await.status < 500).then_some(())
    })
    .await;
    server
}

/// Write the files and start; another port if somebody took this one meanwhile. It is ready when it listens.
async fn spawn(name: &str, prepare: impl Fn(&Path, u16) -> Command) -> Server {
    for _ in 0..5 {
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        if let Some(server) = try_spawn(name, addr, &prepare).await {
            return server;
        }
    }
    panic!("{name} does not start");
}

/// `None` if it ends instead, or finds the port taken.
async fn try_spawn(name: &str, addr: SocketAddr, prepare: impl Fn(&Path, u16) -> Command) -> Option<Server> {
    let dir = tempfile::Builder::new().prefix("millpond-it-").tempdir().unwrap();
    fs::create_dir(dir.path().join("htdocs")).unwrap();
    open_to_all(dir.path());
    let mut process = Process::spawn(&mut prepare(dir.path(), addr.port()));
    if process.listens_at(&[addr]).await {
        return Some(Server { addr, dir, process });
    }
    eprintln!("{name} ended:\n{}", process.log());
    None
}

/// The workers run as another user.
fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}
