//! How much memory a process may use at most.

use std::path::Path;

use super::process::read_small;

/// The machine's, or that of the smallest control group around this process.
pub fn memory_limit() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    let groups = read_small("/proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().filter_map(group_limit);
    limits.fold(machine, u64::min)
}

/// Of a line of /proc/PID/cgroup (cgroups(7)): `ID:CONTROLLERS:GROUP`. Version 2 names no controllers.
fn group_limit(line: &str) -> Option<u64> {
    let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        some if some.split(',').any(|c| c == "memory") => {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return None,
    };
    // A group has what those around it have, at most.
    let around = Path::new(group).ancestors();
    let limit = |group: &Path| {
        let text = read_small(&format!("{root}{}/{file}", group.display()))?;
        text.trim().parse::<u64>().ok()
    };
    around.filter_map(limit).min()
}

/// Is less than half of that file system free?
pub fn is_half_full(dir: &Path) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|s| s.f_bavail < s.f_blocks / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_no_more_than_the_machine() {
        let machine = rustix::system::sysinfo().totalram as u64;
        assert!((1 << 20..=machine).contains(&memory_limit()));
        assert_eq!(group_limit("3:cpu,cpuacct:/a"), None);
        assert_eq!(group_limit("0::/no/such/group/ever"), group_limit("0::/"));
        assert_eq!(group_limit("nonsense"), None);
    }
}
