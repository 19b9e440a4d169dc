//! What the system knows of this process. Read from /proc; where there is none, unknown.

use std::fs;

/// Clock ticks per second as /proc counts them: 100 on every Linux that programs can be built for.
const TICKS: f64 = 100.0;
/// Bytes per page are not asked for: `status` has kB.
const KB: u64 = 1024;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    /// Processor time, of all threads, in seconds.
    pub(super) cpu_seconds: Option<f64>,
    /// Memory that is in RAM, in bytes.
    pub(super) resident: Option<u64>,
    /// Open descriptors.
    pub(super) open_fds: Option<u64>,
    /// How many it may have.
    pub(super) max_fds: Option<u64>,
}

impl Process {
    /// As it is now.
    pub(super) fn look() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        Self {
            cpu_seconds: cpu(&stat),
            resident: kilobytes(&status, "VmRSS:").map(|kb| kb * KB),
            // The one that reads the folder is not counted.
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count().saturating_sub(1) as u64),
            max_fds: limits
                .lines()
                .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok()),
        }
    }
}

/// User and system time: fields 14 and 15, counted behind the name, which may hold anything.
fn cpu(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

fn kilobytes(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_bracket_shifts_nothing() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 4 0 1 1 1";
        assert_eq!(cpu(stat), Some(4.0));
        assert_eq!(cpu(""), None);
    }
}
