//! The sandbox: an ordered list of layers, applied by the child to itself. One file a layer.
//!
//! Who runs this: the child, a single-threaded copy of the zygote, pid 1 of its own pid namespace, root in its own user
//! namespace with every capability there, and no user code run yet. It gives these powers up in this order. Any refusal
//! ends the spawn: nothing is downgraded.

pub mod capabilities;
pub mod id_map;
pub mod mounts;
pub mod namespaces;
pub mod network;
pub mod no_new_privs;
pub mod seccomp;
pub mod session;
pub mod setuid;

use crate::error::Failure;
use crate::layer::Layer;
use crate::protocol::Orders;

/// Applies every layer that `orders` asks for, and returns their names in order.
///
/// # Errors
///
/// The first layer that could not be applied; the process must then end.
pub fn enter(orders: &Orders) -> Result<Vec<Layer>, Failure> {
    let on = |layer: Layer| orders.optional_layers.contains(&layer);

    // The clone made the namespaces, and the zygote wrote the id map. First of all: whatever is opened from here on is not opened as
    // the host's user.
    id_map::enter()?;
    let mut applied = vec![Layer::Namespaces, Layer::IdMap];

    // Needs CAP_NET_ADMIN, so before the capabilities go.
    network::enter(orders.network.as_ref())?;
    applied.push(Layer::Network);

    // Needs CAP_SYS_ADMIN, so before the capabilities go. After the network, whose netlink socket needs no file.
    mounts::enter(orders.chroot)?;
    applied.push(Layer::Mounts);

    // Before seccomp, which refuses keyctl.
    session::enter()?;
    applied.push(Layer::Session);

    // The bounding set and the securebits need CAP_SETPCAP, and the change of uid needs CAP_SETUID and CAP_SETGID: so what
    // bounds later gains goes first, then the uid changes, then what is held now goes.
    if on(Layer::DropCapabilities) {
        capabilities::forbid_gains()?;
    }
    if on(Layer::Setuid) {
        setuid::enter()?;
    }
    if on(Layer::DropCapabilities) {
        capabilities::drop_held()?;
        applied.push(Layer::DropCapabilities);
    }
    if on(Layer::Setuid) {
        applied.push(Layer::Setuid);
    }

    // Before seccomp, which an unprivileged process may install only so.
    if on(Layer::NoNewPrivs) {
        no_new_privs::enter()?;
        applied.push(Layer::NoNewPrivs);
    }

    // Last: it refuses the calls that the layers above are made of.
    if on(Layer::Seccomp) {
        seccomp::enter()?;
        applied.push(Layer::Seccomp);
    }
    Ok(applied)
}
