//! A child's own word that an exception has ended it, for its caller to read in its `comm` before it is reaped.

use std::ffi::CStr;

use crate::sys::kernel::set_comm;

/// What it says.
pub const UNCAUGHT: &CStr = c"pyspawner:raise";

/// Says it. An exit code of 1 must follow.
pub fn tell_uncaught() {
    set_comm(UNCAUGHT);
}
