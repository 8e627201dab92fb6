//! The sandbox: an ordered list of layers, applied by the child to itself. One file a layer.
//!
//! Who runs this: the child, a single-threaded copy of the zygote, pid 1 of its own pid namespace, root in its own user
//! namespace with every capability there, and no user code run yet. It gives these powers up in this order. Any refusal
//! ends the spawn: nothing is downgraded.

pub mod capabilities;
pub mod id_map;
pub mod landlock;
pub mod mounts;
pub mod namespaces;
pub mod network;
pub mod no_new_privs;
pub mod rlimits;
pub mod seccomp;
pub mod session;
pub mod setuid;

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::process::{chdir, getcwd};

use crate::config::CHILD_ID;
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::protocol::{Orders, View};

use mounts::Template;

/// What has been applied, in order, and how long each layer took.
struct Applied {
    layers: Vec<(Layer, u32)>,
    since: Instant,
}

impl Applied {
    fn none() -> Self {
        Self { layers: Vec::new(), since: Instant::now() }
    }

    fn push(&mut self, layer: Layer) {
        let now = Instant::now();
        let nanoseconds = now.duration_since(self.since).as_nanos();
        self.layers.push((layer, u32::try_from(nanoseconds).unwrap_or(u32::MAX)));
        self.since = now;
    }
}

/// Applies every layer that `orders` asks for, and returns their names in order, and the nanoseconds that each took. `sent` came with
/// them; `template` is what the zygote has staged.
///
/// # Errors
///
/// The first layer that could not be applied; the process must then end.
pub(crate) fn enter(
    orders: &Orders,
    view: &View,
    sent: Vec<OwnedFd>,
    template: &Template,
) -> Result<Vec<(Layer, u32)>, Failure> {
    let mut applied = Applied::none();
    // The clone made the namespaces, and the zygote wrote the id map. First of all: whatever is opened from here on is not opened as
    // the host's user. Rootless, there is no other.
    if !template.rootless {
        id_map::enter()?;
    }
    applied.layers.push((Layer::Namespaces, 0));
    applied.push(Layer::IdMap);

    // Needs CAP_NET_ADMIN, so before the capabilities go.
    network::enter(orders.network.as_ref())?;
    applied.push(Layer::Network);

    // Needs CAP_SYS_ADMIN, so before the capabilities go. After the network, whose netlink socket needs no file.
    let has_user = template.rootless || orders.optional_layers.contains(&Layer::Setuid);
    let owner = if has_user { CHILD_ID } else { 0 };
    mounts::enter(view, sent, orders.working_dir.as_deref(), owner, template)?;
    applied.push(Layer::Mounts);

    // Before seccomp, which refuses keyctl.
    session::enter()?;
    if template.rootless {
        session::leave_descriptors()?;
    }
    applied.push(Layer::Session);

    let landlock = || {
        let private: Vec<&CStr> =
            template.private.iter().map(|directory| directory.path.as_c_str()).collect();
        landlock::enter(orders.landlock_abi, view, &private)
    };
    give_up_powers(orders, &mut applied, &setuid::enter, &landlock, &|| Ok(()))?;
    Ok(applied.layers)
}

/// The same without namespaces, in the host's own view, which only Landlock narrows. `id` is the host user to become, `visible` what may be
/// read.
///
/// # Errors
///
/// The first layer that could not be applied; the process must then end.
pub(crate) fn enter_without_namespaces(
    orders: &Orders,
    id: u32,
    visible: &[CString],
) -> Result<Vec<(Layer, u32)>, Failure> {
    let mut applied = Applied::none();
    match session::enter() {
        Err(Failure { step: Step::JoinKeyring, .. }) => session::enter_without_keyring()?,
        entered => entered?,
    }
    applied.push(Layer::Session);
    let landlock = || {
        if orders.landlock_abi < landlock::MIN_WITHOUT_NAMESPACES {
            return Err(Failure::new(Layer::Landlock, Step::RestrictSelf, libc::EOPNOTSUPP));
        }
        landlock::enter_without_namespaces(orders.landlock_abi, visible)
    };
    let setuid = || {
        setuid::enter_host_user(id)?;
        if let Some(wanted) = &orders.working_dir {
            return chdir(wanted.as_c_str()).fail_at(Layer::Mounts, Step::WorkingDir);
        }
        // As the user that it is now; what it may not enter is no place to be.
        let here = getcwd(Vec::new()).unwrap_or_else(|_| c"/".to_owned());
        chdir(here.as_c_str()).or_else(|_| chdir("/")).fail_at(Layer::Mounts, Step::WorkingDir)
    };
    give_up_powers(orders, &mut applied, &setuid, &landlock, &seccomp::refuse_shared)?;
    Ok(applied.layers)
}

/// What is the same with namespaces and without.
fn give_up_powers(
    orders: &Orders,
    applied: &mut Applied,
    setuid: &dyn Fn() -> Result<(), Failure>,
    landlock: &dyn Fn() -> Result<(), Failure>,
    before_seccomp: &dyn Fn() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let on = |layer: Layer| orders.optional_layers.contains(&layer);

    // The bounding set and the securebits need CAP_SETPCAP, and the change of uid needs CAP_SETUID and CAP_SETGID: so what
    // bounds later gains goes first, then the uid changes, then what is held now goes.
    if on(Layer::DropCapabilities) {
        capabilities::forbid_gains()?;
    }
    if on(Layer::Setuid) {
        setuid()?;
    }
    if on(Layer::DropCapabilities) {
        capabilities::drop_held()?;
        applied.push(Layer::DropCapabilities);
    }
    if on(Layer::Setuid) {
        applied.push(Layer::Setuid);
    }

    // Before Landlock and seccomp, which an unprivileged process may enter only so.
    if on(Layer::NoNewPrivs) {
        no_new_privs::enter()?;
        applied.push(Layer::NoNewPrivs);
    }

    // After the mounts, which it forbids to change.
    if on(Layer::Landlock) {
        landlock()?;
        applied.push(Layer::Landlock);
    }

    // After all that opens files, and before user code. The filter lets them be lowered only.
    rlimits::enter(&orders.rlimits, orders.parks)?;
    applied.push(Layer::Rlimits);

    // Last: it refuses the calls that the layers above are made of.
    if on(Layer::Seccomp) {
        before_seccomp()?;
        seccomp::enter()?;
        applied.push(Layer::Seccomp);
    }
    Ok(())
}
