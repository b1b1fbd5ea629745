//! The machine that is measured: what the figures depend on, and where the workers run.

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Machine {
    pub cpu_model: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    pub kernel: String,
    /// Mean number of running tasks over the last minute, at the start.
    pub load: f64,
    /// The CPUs on which server and client run; the same one twice if there is only one.
    pub server_cpu: usize,
    pub client_cpu: usize,
}

impl Machine {
    pub fn look() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("which CPUs may be used")?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
        let server_cpu = usable.next().context("no CPU may be used")?;
        Ok(Self {
            cpu_model: cpu_model(),
            cpus: allowed.count() as usize,
            kernel: read("/proc/sys/kernel/osrelease"),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or(0.0),
            server_cpu,
            client_cpu: usable.next().unwrap_or(server_cpu),
        })
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

fn cpu_model() -> String {
    read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(
            || format!("unknown {}", std::env::consts::ARCH),
            |(_, model)| model.to_owned(),
        )
}

/// Keeps the calling thread, and what it starts, on one CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Raises the limit of open files as far as this user may, for this process and the workers that inherit it.
/// Returns what it is now.
pub fn raise_open_files(wanted: u64) -> u64 {
    let now = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|l| l >= wanted);
    if !enough(now.current) {
        // Beyond the hard limit only the superuser may go; up to it everybody.
        let beyond = Rlimit {
            current: Some(wanted),
            maximum: if enough(now.maximum) {
                now.maximum
            } else {
                Some(wanted)
            },
        };
        if setrlimit(Resource::Nofile, beyond).is_err() {
            let _ = setrlimit(
                Resource::Nofile,
                Rlimit {
                    current: now.maximum,
                    maximum: now.maximum,
                },
            );
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
