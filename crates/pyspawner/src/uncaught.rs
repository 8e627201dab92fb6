//! A child's own word that an exception has ended it, for its caller to read in its `comm` before it is reaped.

use crate::sys::kernel::set_comm;

/// What it says.
pub const UNCAUGHT: &str = "pyspawner:raise";

/// Says it. An exit code of 1 must follow.
pub fn tell_uncaught() {
    set_comm(c"pyspawner:raise");
}
