//! What a child's layers do here, in words: `child.layers`.

use rustix::process::geteuid;

use crate::config::{self, SandboxConfig};
use crate::layer::Layer;
use crate::sandbox::{id_map, landlock, namespaces};

/// What `child.layers` says: of every layer that is on, and of those that this kernel or configuration lacks.
pub(super) fn describe_all(
    layers: &[(Layer, u32)],
    sandbox: &SandboxConfig,
    first_id: Option<u32>,
) -> Vec<(Layer, String)> {
    let on = |layer: &Layer| layers.iter().any(|(applied, _)| applied == layer);
    let lacking = |layer: &Layer| match layer {
        Layer::Namespaces => !sandbox.namespaces,
        Layer::Landlock => sandbox.optional_layers().contains(layer),
        _ => false,
    };
    let told = Layer::ALL.into_iter().filter(|layer| on(layer) || lacking(layer));
    told.map(|layer| (layer, describe(layer, sandbox, first_id))).collect()
}

/// What `child.layers` says of a layer.
fn describe(layer: Layer, sandbox: &SandboxConfig, first_id: Option<u32>) -> String {
    match layer {
        Layer::Namespaces if sandbox.namespaces => namespaces::DETAIL.to_owned(),
        Layer::Namespaces => namespaces::WITHOUT.to_owned(),
        Layer::IdMap => match first_id {
            Some(first) => format!("ids 0 to {} are host ids from {first}", id_map::RANGE - 1),
            None => format!(
                "rootless: no range of its own; id {} is the caller's own user {} on the host",
                config::CHILD_ID,
                geteuid().as_raw()
            ),
        },
        Layer::Network => match &sandbox.network {
            None => "none: only a lo that is down".to_owned(),
            Some(network) => format!(
                "veth pair {} {} and {} {}",
                network.kernel_veth_name,
                network.kernel_ipv4_address,
                network.child_veth_name,
                network.child_ipv4_address
            ),
        },
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
        Layer::Seccomp if sandbox.namespaces => "default-deny system-call filter".to_owned(),
        Layer::Seccomp => "default-deny system-call filter, no sockets".to_owned(),
    }
}
