//! What a child may use.

use std::time::Duration;

use super::ConfigError;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The least descriptors: what a child needs for itself until user code runs.
const LEAST_OPEN_FILES: u64 = 16;

/// The least memory in which an interpreter can begin.
const LEAST_MEMORY: u64 = 4 * MIB;

/// A page: a tmpfs of size 0 would have no limit.
const LEAST_TMP: u64 = 4096;

/// The kernel's, in microseconds of a period of 100,000.
const LEAST_QUOTA: Duration = Duration::from_millis(10);

/// What a child may use. `None`: as much as its caller.
///
/// With a cgroup, memory, CPU time and processes are those of the child and everything that it starts. Without, memory and CPU time are
/// those of each process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory, beside what it shares with the zygote.
    pub memory_bytes: Option<u64>,
    /// CPU time.
    pub cpu_time: Option<Duration>,
    /// CPU time in each second: one second is one CPU. Only a cgroup can limit it.
    pub cpu_per_second: Option<Duration>,
    /// Processes and threads at the same time.
    pub processes: Option<u64>,
    /// Descriptors in each process.
    pub open_files: Option<u64>,
    /// The size of each file that it writes.
    pub file_bytes: Option<u64>,
    /// `/tmp`, `/var/tmp` and `/dev/shm` together.
    pub tmp_bytes: u64,
    /// Added to the caller's own niceness.
    pub nice: u8,
    /// Whether it has a cgroup.
    pub cgroup: CgroupUse,
}

/// Whether a child has a cgroup of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupUse {
    /// Where the host gives the caller a subtree.
    IfDelegated,
    /// Or there is no child.
    Required,
    /// Not even where it could.
    Never,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: Some(2 * GIB),
            cpu_time: Some(Duration::from_secs(3600)),
            cpu_per_second: None,
            processes: Some(512),
            open_files: Some(1024),
            file_bytes: Some(8 * GIB),
            tmp_bytes: 256 * MIB,
            nice: 0,
            cgroup: CgroupUse::IfDelegated,
        }
    }
}

impl Limits {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let least = |field, value: Option<u64>, least, unit| match value {
            Some(value) if value < least => Err(ConfigError::Field {
                field,
                problem: format!("must be at least {least}{unit}, not {value}"),
            }),
            _ => Ok(()),
        };
        let positive = |field, value: Option<Duration>, least| match value {
            Some(value) if value < least => Err(ConfigError::Field {
                field,
                problem: format!("must be at least {}, not {}", least.as_secs_f64(), value.as_secs_f64()),
            }),
            _ => Ok(()),
        };
        least("memory_bytes", self.memory_bytes, LEAST_MEMORY, " bytes")?;
        positive("cpu_seconds", self.cpu_time, Duration::from_millis(1))?;
        positive("cpus", self.cpu_per_second, LEAST_QUOTA)?;
        least("processes", self.processes, 1, "")?;
        least("open_files", self.open_files, LEAST_OPEN_FILES, "")?;
        least("tmp_bytes", Some(self.tmp_bytes), LEAST_TMP, " bytes")?;
        if self.nice > 19 {
            let problem = format!("must be from 0 to 19, not {}", self.nice);
            return Err(ConfigError::Field { field: "nice", problem });
        }
        if self.cpu_per_second.is_some() && self.cgroup == CgroupUse::Never {
            let problem = "needs a cgroup, and this configuration has cgroup=\"never\"".to_owned();
            return Err(ConfigError::Field { field: "cpus", problem });
        }
        Ok(())
    }
}
