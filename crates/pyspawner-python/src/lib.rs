//! `pyspawner._native`: the core as Python classes. A binding without logic: it converts, and releases the GIL around what blocks.
//!
//! `python/pyspawner/_native.pyi` describes it to type checkers.

mod caller;
mod errors;
mod limits;
mod zygote;

use pyo3::prelude::*;

/// The native core of pyspawner. Private: use `pyspawner`.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::caller::{Child, Client, Completed, Ended, Mount, Network, Sandbox, Stop, open_beneath};
    #[pymodule_export]
    use super::zygote::{Boot, Start, tell_uncaught};

    /// The version of the core, the same as the package's.
    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "Python's name for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
