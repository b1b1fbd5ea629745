//! Real programs, plain and under `sgm run`: redis with its own benchmark, nginx and node with wrk, where they are installed.
//! They run as a user would run them: not pinned, both ends under the front.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::figure::{BELLS, Better, Metric, Target, Unit};
use super::front::{Carriage, Check, Mode, Report};
use super::measure::{RowResult, Sample, Session};
use super::program::Program;

const ROUNDS: usize = 3;
pub const NAMES: [&str; 3] = ["redis", "nginx", "node"];

const fn requests(name: &'static str) -> Metric {
    Metric {
        name,
        unit: Unit::PerSecond,
        better: Better::Higher,
    }
}

const REDIS_ONE: [Metric; 2] = [requests("SET, 1 client"), requests("GET, 1 client")];
const REDIS_FIFTY: [Metric; 2] = [requests("SET, 50 clients"), requests("GET, 50 clients")];
/// wrk's connections, and the figure of each.
const NGINX: [(&str, Metric); 2] = [
    ("1", requests("1 connection")),
    ("64", requests("64 connections")),
];
const NODE: [(&str, Metric); 2] = [
    ("20", requests("20 connections")),
    ("50", requests("50 connections")),
];

fn targets(name: &str) -> Vec<(Metric, Target)> {
    match name {
        "redis" => REDIS_FIFTY.map(|m| (m, Target::Gain(18.0))).into(),
        "nginx" => vec![(NGINX[1].1, Target::Gain(4.0))],
        _ => NODE.map(|(_, m)| (m, Target::Gain(3.0))).into(),
    }
}

/// Runs the app row called `name`.
pub fn row(session: &Session, name: &str, quick: bool) -> RowResult {
    let (title, tools) = match name {
        "redis" => ("redis-benchmark", ["redis-server", "redis-benchmark"]),
        "nginx" => ("wrk", ["nginx", "wrk"]),
        _ => ("wrk", ["node", "wrk"]),
    };
    let found = tools.map(on_path);
    let [Some(server), Some(client)] = found else {
        let missing: Vec<&str> = tools
            .iter()
            .zip(&found)
            .filter(|(_, f)| f.is_none())
            .map(|(t, _)| *t)
            .collect();
        return RowResult::skipped(
            name,
            "apps",
            title,
            format!("{} not found on PATH", missing.join(" and ")),
        );
    };
    let rounds = session.rounds.min(if quick { 1 } else { ROUNDS });
    session.alternate(
        (name, "apps", title),
        session.modes(),
        rounds,
        &targets(name),
        |mode| match name {
            "redis" => redis(
                session,
                mode,
                (&server, &client),
                if quick { 20_000 } else { 50_000 },
            ),
            "nginx" => nginx(session, mode, &server, &client),
            _ => node(session, mode, &server, &client),
        },
    )
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A port that was free a moment ago: these servers cannot be asked which one they got.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// What `redis-benchmark` sends and gets per SET and GET at the very least (key of 16, value of 3 bytes).
const REDIS_BYTES: u64 = 45 + 5 + 36 + 9;

/// `count` requests of one client, and four times as many of 50.
fn redis(
    session: &Session,
    mode: Mode,
    (server, client): (&Path, &Path),
    count: u64,
) -> Result<Sample> {
    let port = free_port()?;
    let server = redis_server(session, mode, server, port)?;
    let mut values = Vec::new();
    let mut reports = Vec::new();
    let mut least_bytes = 0;
    for (clients, count, [set, get]) in [(1, count, REDIS_ONE), (50, 4 * count, REDIS_FIFTY)] {
        let mut launch = session.front.launch(mode, client);
        let arguments =
            format!("-h 127.0.0.1 -p {port} -t get,set -q --csv -c {clients} -n {count}");
        launch.command.args(arguments.split(' '));
        let (output, report) = Program::start(launch, "redis-benchmark")?.finish()?;
        reports.extend(report);
        least_bytes += count * REDIS_BYTES;
        values.push((set, csv_rate(&output, "SET")?));
        values.push((get, csv_rate(&output, "GET")?));
    }
    // The server closes without an answer.
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))?.write_all(b"SHUTDOWN NOSAVE\r\n")?;
    reports.extend(server.finish()?.1);
    Ok(sample(mode, values, least_bytes, &reports))
}

fn redis_server(session: &Session, mode: Mode, program: &Path, port: u16) -> Result<Program> {
    let mut launch = session.front.launch(mode, program);
    let arguments = format!("--port {port} --bind 127.0.0.1 --appendonly no");
    launch
        .command
        .args(arguments.split(' '))
        .args(["--save", "", "--dir"])
        .arg(session.front.scratch.path(""));
    let server = Program::start(launch, "redis-server")?;
    server.wait_for("Ready to accept connections")?;
    Ok(server)
}

/// `"SET","52356.02","0.013",...`: test and requests per second.
fn csv_rate(output: &str, test: &str) -> Result<f64> {
    let line = output
        .lines()
        .find_map(|line| line.strip_prefix(&format!("\"{test}\",\"")));
    let rate = line
        .and_then(|rest| rest.split('"').next())
        .and_then(|rate| rate.parse().ok());
    rate.with_context(|| format!("no rate for {test} in {output:?}"))
}

/// The body that nginx serves.
const PAGE: &str = "Four score and seven messages ago, our programs brought forth on this host a new connection.\n";
/// A request of wrk, and the headers of the answer, are longer than this.
const HTTP_BYTES: u64 = 40 + 120;

fn nginx(session: &Session, mode: Mode, nginx: &Path, wrk: &Path) -> Result<Sample> {
    let port = free_port()?;
    let dir = session.front.scratch.path("nginx");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join("index.html"), PAGE)?;
    let config = dir.join("nginx.conf");
    std::fs::write(&config, nginx_config(&dir, port))?;

    let mut launch = session.front.launch(mode, nginx);
    launch.command.arg("-p").arg(&dir).arg("-c").arg(&config);
    let server = Program::start(launch, "nginx")?;
    server.wait_for("start worker process ")?;

    let url = format!("http://127.0.0.1:{port}/index.html");
    let mut loaded = load(session, mode, wrk, &url, &NGINX)?;
    let quit = Command::new(nginx)
        .arg("-p")
        .arg(&dir)
        .arg("-c")
        .arg(&config)
        .args(["-s", "quit"])
        .output()?;
    ensure!(
        quit.status.success(),
        "nginx does not quit: {}",
        String::from_utf8_lossy(&quit.stderr)
    );
    loaded.reports.extend(server.finish()?.1);
    Ok(loaded.sample(mode))
}

/// What wrk found.
#[derive(Default)]
struct Loaded {
    values: Vec<(Metric, f64)>,
    reports: Vec<Report>,
    least_bytes: u64,
}

impl Loaded {
    fn sample(self, mode: Mode) -> Sample {
        sample(mode, self.values, self.least_bytes, &self.reports)
    }
}

/// Asks for `url`, a page as long as [`PAGE`], on so many connections at a time.
fn load(
    session: &Session,
    mode: Mode,
    wrk: &Path,
    url: &str,
    connections: &[(&str, Metric)],
) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    for &(connections, metric) in connections {
        let mut launch = session.front.launch(mode, wrk);
        launch
            .command
            .args(["-t", "1", "-c", connections, "-d", "1s", url]);
        let (output, report) = Program::start(launch, "wrk")?.finish()?;
        loaded.reports.extend(report);
        let (count, rate) = wrk_rate(&output)?;
        loaded.least_bytes += count * (HTTP_BYTES + PAGE.len() as u64);
        loaded.values.push((metric, rate));
    }
    Ok(loaded)
}

fn node(session: &Session, mode: Mode, node: &Path, wrk: &Path) -> Result<Sample> {
    let port = free_port()?;
    let script = session.front.scratch.path("server.js");
    std::fs::write(&script, node_script(port))?;
    let mut launch = session.front.launch(mode, node);
    launch.command.arg(&script);
    let server = Program::start(launch, "node")?;
    server.wait_for("listening")?;
    let url = format!("http://127.0.0.1:{port}/");
    let mut loaded = load(session, mode, wrk, &url, &NODE)?;
    // It ends without an answer.
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))?.write_all(b"GET /end HTTP/1.0\r\n\r\n")?;
    loaded.reports.extend(server.finish()?.1);
    Ok(loaded.sample(mode))
}

fn node_script(port: u16) -> String {
    let page = PAGE.trim_end();
    format!(
        "const answer = (request, response) => {{\n\
         \x20 if (request.url == '/end') process.exit(0);\n\
         \x20 response.end('{page}\\n');\n}};\n\
         const server = require('http').createServer(answer);\n\
         server.listen({port}, '127.0.0.1', () => console.log('listening'));\n"
    )
}

fn nginx_config(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    // A worker of another user could not open the node: nginx gives up root only if it has it.
    let user = if rustix::process::geteuid().is_root() {
        "user root;\n"
    } else {
        ""
    };
    format!(
        "{user}daemon off;\nworker_processes 1;\npid {dir}/pid;\nerror_log stderr notice;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  keepalive_requests 1000000000;\n\
         \x20 client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n  fastcgi_temp_path {dir}/fastcgi;\n\
         \x20 uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n\
         \x20 server {{ listen 127.0.0.1:{port}; root {dir}; }}\n}}\n"
    )
}

/// Requests and requests per second, if every request was answered well.
fn wrk_rate(output: &str) -> Result<(u64, f64)> {
    if let Some(bad) = output
        .lines()
        .find(|line| line.contains("Non-2xx") || line.contains("Socket errors"))
    {
        bail!("wrk: {}", bad.trim());
    }
    let count = output
        .lines()
        .find_map(|line| line.split_once(" requests in ")?.0.trim().parse().ok());
    let rate = output
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    count
        .zip(rate)
        .with_context(|| format!("no rate in {output:?}"))
}

/// These programs do not tell how many bytes they sent. The front's own sum is checked against what they must have sent.
fn sample(
    mode: Mode,
    mut values: Vec<(Metric, f64)>,
    least_bytes: u64,
    reports: &[Report],
) -> Sample {
    let counted = reports.iter().map(Report::sent_bytes).sum::<u64>();
    let carriage = (mode == Mode::Carried)
        .then(|| Carriage::of(Check::Bytes, counted.max(least_bytes), 0, reports));
    values.extend(Report::bells_per_message(reports).map(|bells| (BELLS, bells)));
    Sample { values, carriage }
}

/// How long a program may take to come up, or to end.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_tools() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"52356.02\",\"0.013\"\n\"GET\",\"60000.00\",\"0.012\"\n";
        assert_eq!(csv_rate(csv, "SET").unwrap(), 52356.02);
        assert_eq!(csv_rate(csv, "GET").unwrap(), 60000.0);
        assert!(csv_rate("Could not connect", "GET").is_err());
        let good = "  12345 requests in 1.00s, 3.10MB read\nRequests/sec:  12340.12\n";
        assert_eq!(wrk_rate(good).unwrap(), (12345, 12340.12));
        assert!(wrk_rate(&format!("{good}  Non-2xx or 3xx responses: 7\n")).is_err());
    }
}
