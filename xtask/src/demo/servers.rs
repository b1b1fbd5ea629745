//! The two servers, each on a free port and with its files in the demo's directory.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::Side;
use super::place::{Place, Started};
use super::report::Report;
use crate::proc::retry;

/// Far more than a server takes to start or stop.
const LIMIT: Duration = Duration::from_secs(15);

/// Bytes of the page that nginx serves.
const PAGE_BYTES: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    Redis,
    Nginx,
}

impl ServerKind {
    /// The program's name.
    pub fn label(self) -> &'static str {
        match self {
            ServerKind::Redis => "redis-server",
            ServerKind::Nginx => "nginx",
        }
    }
}

/// A server that listens.
pub struct Server {
    started: Started,
    pidfile: PathBuf,
    pub port: u16,
}

impl Server {
    /// Starts the server and waits until it accepts connections.
    pub fn start(place: &Place, kind: ServerKind, side: Side) -> Result<Server> {
        let port = free_port()?;
        let dir = place.path(&format!("{}-{port}", kind.label()));
        std::fs::create_dir(&dir)?;
        let pidfile = dir.join("pid");
        let word = |path: &std::path::Path| {
            path.to_str()
                .map(str::to_owned)
                .context("a temporary path is not UTF-8")
        };
        let args = match kind {
            ServerKind::Redis => redis_args(port, &word(&dir)?, &word(&pidfile)?),
            ServerKind::Nginx => {
                std::fs::write(dir.join("index.html"), "x".repeat(PAGE_BYTES))?;
                std::fs::write(dir.join("nginx.conf"), nginx_conf(port))?;
                ["-p", &word(&dir)?, "-c", "nginx.conf"]
                    .map(str::to_owned)
                    .to_vec()
            }
        };
        let mut started = place.start(kind.label(), &args, side)?;
        let listening = retry(LIMIT, "the server does not listen", || {
            if !started.group.is_alive() {
                bail!("the server ended at once");
            }
            // Both: the port is open before the pid file is written.
            let ready = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
                && read_pid(&pidfile).is_ok();
            Ok(if ready {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        });
        match listening {
            Ok(()) => Ok(Server {
                started,
                pidfile,
                port,
            }),
            Err(error) => Err(started.explain(error)),
        }
    }

    /// Ends the server as its administrator would, and gives the counters of the one under `sgm run`. The signal goes
    /// to the server, not to `sgm run` above it, which must live to write them.
    pub fn stop(self) -> Result<Option<Report>> {
        kill_process(read_pid(&self.pidfile)?, Signal::TERM).context("cannot stop a server")?;
        Ok(self.started.finish(LIMIT)?.1)
    }
}

fn read_pid(file: &std::path::Path) -> Result<Pid> {
    let text = std::fs::read_to_string(file).context("the server wrote no pid file")?;
    Pid::from_raw(text.trim().parse()?).context("a pid file holds 0")
}

pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// As Debian's, but in the foreground and without files that outlive the demo.
fn redis_args(port: u16, dir: &str, pidfile: &str) -> Vec<String> {
    let port = port.to_string();
    [
        "--port",
        &port,
        "--bind",
        "127.0.0.1",
        "--dir",
        dir,
        "--pidfile",
        pidfile,
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// As Debian's `nginx.conf` in what counts (sendfile, tcp_nopush, keep-alive as built in), with all files in the
/// demo's directory, the access log off, and one worker, as the load generator has one thread.
fn nginx_conf(port: u16) -> String {
    // As root the worker would become another user, whom the node directory keeps out: it is for one user.
    let user = if geteuid().is_root() {
        "user root root;"
    } else {
        ""
    };
    format!(
        "{user}
daemon off;
worker_processes 1;
pid pid;
error_log error.log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port};
        root .;
    }}
}}
"
    )
}
