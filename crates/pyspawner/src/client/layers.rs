//! What a child's layers do here, in words: `child.layers`.

use rustix::process::geteuid;

use crate::config::{self, Limits, SandboxConfig};
use crate::error::Failure;
use crate::layer::Layer;
use crate::sandbox::{id_map, landlock, namespaces};

use super::network::Prepared;

/// What `child.layers` says: of every layer that is on, and of those that this kernel or configuration lacks.
pub(super) fn describe_all(
    layers: &[(Layer, u32)],
    sandbox: &SandboxConfig,
    first_id: Option<u32>,
    no_cgroup: Option<&Failure>,
    network: Option<&Prepared<'_>>,
) -> Vec<(Layer, String)> {
    let on = |layer: &Layer| layers.iter().any(|(applied, _)| applied == layer);
    let lacking = |layer: &Layer| match layer {
        Layer::Namespaces => !sandbox.namespaces,
        Layer::Cgroup => true,
        Layer::Landlock => sandbox.optional_layers().contains(layer),
        _ => false,
    };
    let told = Layer::ALL.into_iter().filter(|layer| on(layer) || lacking(layer));
    told.map(|layer| (layer, describe(layer, sandbox, first_id, no_cgroup, network))).collect()
}

/// What `child.layers` says of a layer.
fn describe(
    layer: Layer,
    sandbox: &SandboxConfig,
    first_id: Option<u32>,
    no_cgroup: Option<&Failure>,
    network: Option<&Prepared<'_>>,
) -> String {
    match layer {
        Layer::Namespaces if sandbox.namespaces => namespaces::DETAIL.to_owned(),
        Layer::Namespaces => namespaces::WITHOUT.to_owned(),
        Layer::Cgroup => {
            no_cgroup.map_or_else(|| of_all(&sandbox.limits), |failure| without_cgroup(failure.errno))
        }
        Layer::IdMap => match first_id {
            Some(first) => format!("ids 0 to {} are host ids from {first}", id_map::RANGE - 1),
            None => format!(
                "rootless: no range of its own; id {} is the caller's own user {} on the host",
                config::CHILD_ID,
                geteuid().as_raw()
            ),
        },
        Layer::Network => {
            network.map_or_else(|| "none: only a lo that is down".to_owned(), Prepared::describe)
        }
        Layer::Mounts => {
            let root = match &sandbox.chroot_dir {
                None => "read-only host, private /tmp, own /proc and /dev".to_owned(),
                Some(directory) => format!("read-only root {}", directory.display()),
            };
            let no_proc = if sandbox.chroot_dir.is_none() && !sandbox.proc { "; no /proc" } else { "" };
            let mounts = match sandbox.mounts.len() {
                0 => String::new(),
                1 => "; 1 mount more".to_owned(),
                count => format!("; {count} mounts more"),
            };
            root + no_proc + &mounts
        }
        Layer::Session => "own session, empty keyring, no core dumps".to_owned(),
        Layer::DropCapabilities => "all five sets empty, securebits locked".to_owned(),
        Layer::Setuid if sandbox.namespaces => format!("uid and gid {}", config::CHILD_ID),
        Layer::Setuid => {
            format!("the host's uid and gid {}", first_id.unwrap_or_default() + config::CHILD_ID)
        }
        Layer::NoNewPrivs => "execve gives no privileges".to_owned(),
        Layer::Landlock => landlock::describe(landlock::abi(sandbox.max_landlock_abi)),
        Layer::Rlimits => of_each(&sandbox.limits),
        Layer::Seccomp if sandbox.namespaces => "default-deny system-call filter".to_owned(),
        Layer::Seccomp => "default-deny system-call filter, no sockets".to_owned(),
    }
}

/// What a cgroup limits.
fn of_all(limits: &Limits) -> String {
    let all = [
        limits.memory_bytes.map(|bytes| format!("{} of memory, no swap", size(bytes))),
        limits.processes.map(|count| format!("{count} processes and threads")),
        limits.cpu_time.map(|time| format!("{} s of CPU time", time.as_secs_f64())),
        limits.cpu_per_second.map(|time| format!("{} CPUs", time.as_secs_f64())),
    ];
    let all: Vec<_> = all.into_iter().flatten().collect();
    if all.is_empty() { "no limits".to_owned() } else { format!("{}, together", all.join(", ")) }
}

fn without_cgroup(errno: i32) -> String {
    let why = match errno {
        libc::ECANCELED => "as asked",
        libc::ENODEV => "the host has no cgroup v2 with the controllers memory and pids",
        libc::EROFS => "the tree of cgroups is read-only here",
        libc::EBUSY => "the caller's cgroup has the caller in it",
        _ => "none is delegated to the caller",
    };
    format!("none ({why}): memory and CPU time are limited for each process, and not for all together")
}

/// What setrlimit(2) limits.
fn of_each(limits: &Limits) -> String {
    let all = [
        limits.memory_bytes.map(|bytes| format!("{} of data beside the zygote's", size(bytes))),
        limits.cpu_time.map(|time| format!("{} s of CPU time", time.as_secs_f64().ceil())),
        limits.processes.map(|count| format!("{count} processes and threads in all")),
        limits.open_files.map(|count| format!("{count} descriptors")),
        limits.file_bytes.map(|bytes| format!("files of {}", size(bytes))),
    ];
    let all: Vec<_> = all.into_iter().flatten().collect();
    let all =
        if all.is_empty() { "no limits".to_owned() } else { format!("each process: {}", all.join(", ")) };
    let nice = if limits.nice == 0 { String::new() } else { format!("; {} nicer", limits.nice) };
    format!("{all}{nice}; the first to go when memory is short")
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut number = bytes;
    let mut unit = 0;
    while number >= 1024 && number % 1024 == 0 && unit + 1 < UNITS.len() {
        number /= 1024;
        unit += 1;
    }
    format!("{number} {}", UNITS[unit])
}
