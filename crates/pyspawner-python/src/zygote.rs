//! The zygote's class, and the interpreter's own duties around a clone.
#![expect(unsafe_code, reason = "the fork guard: CPython's fork hooks")]

use std::os::fd::{IntoRawFd, RawFd};
use std::path::PathBuf;

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi::{PyOS_AfterFork_Child, PyOS_AfterFork_Parent, PyOS_BeforeFork};
use pyo3::prelude::*;
use pyspawner::zygote::{self, ForkHooks, Needs, Served};

use crate::errors::from_zygote;

/// CPython's hooks, as `os.fork()` calls them.
struct CPython;

impl ForkHooks for CPython {
    fn before(&mut self) {
        // SAFETY: called from a method, so this thread holds the GIL; a call of one of the two below always follows.
        unsafe { PyOS_BeforeFork() }
    }

    fn after_in_parent(&mut self) {
        // SAFETY: follows `before` on the same thread, which still holds the GIL.
        unsafe { PyOS_AfterFork_Parent() }
    }

    fn after_in_child(&mut self) {
        // SAFETY: follows `before` in the copy of the thread that called it, the only thread of this process.
        unsafe { PyOS_AfterFork_Child() }
    }
}

/// The zygote, from its first line on.
#[pyclass]
pub(crate) struct Boot {
    core: Option<zygote::Boot>,
}

impl Boot {
    fn core(&mut self) -> PyResult<&mut zygote::Boot> {
        self.core.as_mut().ok_or_else(|| PyRuntimeError::new_err("the zygote already serves"))
    }
}

#[pymethods]
impl Boot {
    #[new]
    fn new(socket: RawFd) -> PyResult<Self> {
        let core = zygote::Boot::begin(socket, c"PyObject_SetArenaAllocator")
            .map_err(|error| from_zygote(&error))?;
        Ok(Self { core: Some(core) })
    }

    #[getter]
    fn child_main(&mut self) -> PyResult<String> {
        Ok(self.core()?.start().child_main.clone())
    }

    #[getter]
    fn preload_imports(&mut self) -> PyResult<Vec<String>> {
        Ok(self.core()?.start().preload_imports.clone())
    }

    #[getter]
    fn sys_path(&mut self) -> PyResult<Option<Vec<Vec<u8>>>> {
        Ok(self.core()?.start().sys_path.clone())
    }

    /// Tells the caller whose import begins.
    fn importing(&mut self, module: &str) -> PyResult<()> {
        self.core()?.importing(module).map_err(|error| from_zygote(&error))
    }

    /// Tells the caller why there will be no zygote.
    fn failed(&mut self, summary: &str, traceback: &str) -> PyResult<()> {
        self.core()?.failed(summary, traceback).map_err(|error| from_zygote(&error))
    }

    /// Whether imports left threads behind, so that the zygote must fork first.
    fn must_hand_over(&mut self) -> PyResult<bool> {
        self.core()?.must_hand_over().map_err(|error| from_zygote(&error))
    }

    /// Tells the caller which process goes on; then this one must end.
    fn hand_over(&mut self, successor: i32) -> PyResult<()> {
        self.core()?.hand_over(successor).map_err(|error| from_zygote(&error))
    }

    /// In that fork: waits until the process behind the pidfd `predecessor` has ended and the caller is the parent.
    fn take_over(&mut self, predecessor: RawFd) -> PyResult<()> {
        self.core()?.take_over(predecessor).map_err(|error| from_zygote(&error))
    }

    /// Serves until the caller closes its Client: `None`. In every child it returns the descriptor of the pickled args.
    fn serve(&mut self, installation: Vec<PathBuf>, search_path: Vec<PathBuf>) -> PyResult<Option<RawFd>> {
        self.core()?;
        let Some(boot) = self.core.take() else { return Ok(None) };
        let served = boot
            .ready(Needs { installation, search_path })
            .and_then(|zygote| zygote.serve(&mut CPython))
            .map_err(|error| from_zygote(&error))?;
        match served {
            Served::Closed => Ok(None),
            Served::Child(start) => Ok(Some(start.args.into_raw_fd())),
        }
    }
}

/// A child's last word but one: an exception ends it, with an exit code of 1.
#[pyfunction]
pub(crate) fn tell_uncaught() {
    pyspawner::uncaught::tell_uncaught();
}
