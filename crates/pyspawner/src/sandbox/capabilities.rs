//! Layer `drop_capabilities`: the effective, permitted, inheritable, bounding and ambient sets are empty, and the securebits are
//! locked so that being or becoming uid 0 gives nothing back. See capabilities(7).

use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities,
    set_capabilities_secure_bits,
};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::kernel::drop_bounding_set;

/// Bounds what execve(2) or a change of uid could give later. Needs `CAP_SETPCAP`, so it comes before [`drop_held`].
///
/// # Errors
///
/// What the kernel refused.
pub fn forbid_gains() -> Result<(), Failure> {
    let locked = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(locked).fail_at(Layer::DropCapabilities, Step::SetSecurebits)?;
    drop_bounding_set().fail_at(Layer::DropCapabilities, Step::DropBoundingSet)?;
    clear_ambient_capability_set().fail_at(Layer::DropCapabilities, Step::ClearAmbientSet)
}

/// Gives up what is held now.
///
/// # Errors
///
/// What the kernel refused.
pub fn drop_held() -> Result<(), Failure> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).fail_at(Layer::DropCapabilities, Step::SetCapabilities)
}
