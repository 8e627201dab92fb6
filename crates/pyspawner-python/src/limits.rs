//! `pyspawner.Limits`, read by its attributes.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyspawner::config::{self, CgroupUse};

#[derive(FromPyObject)]
pub(crate) struct Limits {
    memory_bytes: Option<u64>,
    cpu_seconds: Option<f64>,
    cpus: Option<f64>,
    processes: Option<u64>,
    open_files: Option<u64>,
    file_bytes: Option<u64>,
    tmp_bytes: u64,
    nice: u8,
    cgroup: String,
}

impl Limits {
    pub(crate) fn into_core(self) -> PyResult<config::Limits> {
        let cgroup = match self.cgroup.as_str() {
            "if_delegated" => CgroupUse::IfDelegated,
            "required" => CgroupUse::Required,
            "never" => CgroupUse::Never,
            other => {
                let message =
                    format!("cgroup must be \"if_delegated\", \"required\" or \"never\", not {other:?}");
                return Err(PyValueError::new_err(message));
            }
        };
        Ok(config::Limits {
            memory_bytes: self.memory_bytes,
            cpu_time: seconds("cpu_seconds", self.cpu_seconds)?,
            cpu_per_second: seconds("cpus", self.cpus)?,
            processes: self.processes,
            open_files: self.open_files,
            file_bytes: self.file_bytes,
            tmp_bytes: self.tmp_bytes,
            nice: self.nice,
            cgroup,
        })
    }
}

fn seconds(field: &str, value: Option<f64>) -> PyResult<Option<Duration>> {
    let to_duration = |value| {
        Duration::try_from_secs_f64(value)
            .map_err(|_| PyValueError::new_err(format!("{field} must be a positive number, not {value}")))
    };
    value.map(to_duration).transpose()
}
