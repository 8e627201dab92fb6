//! The core's errors as Python exceptions. Their classes live in `pyspawner._errors`.

use std::io;
use std::path::Path;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyspawner::error::{Error, StartError};
use pyspawner::layer::Layer;
use pyspawner::zygote::ZygoteError;

/// What writing to a process that is gone gives; errno(3).
const EPIPE: i32 = 32;

/// The exception for an error of the caller's side.
pub(crate) fn to_python(py: Python<'_>, error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Config(_) => PyValueError::new_err(message),
        Error::Start(start) => {
            let traceback = match start {
                StartError::Import { traceback, .. } => Some(traceback),
                StartError::Silent { stderr, .. } => Some(stderr),
                _ => None,
            };
            raise(py, "ZygoteStartError", (message, traceback))
        }
        Error::ZygoteDied { .. } => raise(py, "ZygoteDiedError", (EPIPE, message)),
        Error::Sandbox(failure) => {
            let class = if failure.is_netlink() { "NetlinkError" } else { "SandboxError" };
            raise(py, class, (failure.errno, failure.to_string(), failure.layer.name(), failure.hint()))
        }
        Error::Network(error) => {
            raise(py, "SandboxError", (error.errno(), message, Layer::Network.name(), error.hint()))
        }
        Error::WarmUp { .. } => raise(py, "WarmUpError", (message,)),
        Error::Io { doing, source } => {
            PyOSError::new_err((source.raw_os_error(), format!("{source}, while doing: {doing}")))
        }
        _ => PyRuntimeError::new_err(message),
    }
}

/// The exception for an error of the zygote's side.
pub(crate) fn from_zygote(error: &ZygoteError) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

/// The exception for a file that could not be opened, with its name, as `open()` has it.
pub(crate) fn from_io(error: &io::Error, path: &Path) -> PyErr {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or_default().to_owned();
    PyOSError::new_err((error.raw_os_error(), words, path.to_path_buf()))
}

fn raise<'py>(py: Python<'py>, class: &str, arguments: impl pyo3::call::PyCallArgs<'py>) -> PyErr {
    let exception = py
        .import("pyspawner._errors")
        .and_then(|errors| errors.getattr(class))
        .and_then(|class| class.call1(arguments));
    match exception {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}
