//! The zygote's class, and the interpreter's own duties around a clone.
#![expect(unsafe_code, reason = "the fork guard: CPython's fork hooks")]

use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi::{PyOS_AfterFork_Child, PyOS_AfterFork_Parent, PyOS_BeforeFork};
use pyo3::prelude::*;
use pyspawner::zygote::{self, ChildStart, ForkHooks, Needs, Parking, Served};

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

    #[getter]
    fn warm_up(&mut self) -> PyResult<Option<String>> {
        Ok(self.core()?.start().warm_up.clone())
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

    /// Serves until the caller closes its Client: `None`. In every child it returns its start, and in a clone that is to be another zygote the
    /// boot of that one.
    fn serve(&mut self, installation: Vec<PathBuf>, search_path: Vec<PathBuf>) -> PyResult<Option<Serving>> {
        self.core()?;
        let Some(boot) = self.core.take() else { return Ok(None) };
        let served = boot
            .ready(Needs { installation, search_path })
            .and_then(|zygote| zygote.serve(&mut CPython))
            .map_err(|error| from_zygote(&error))?;
        match served {
            Served::Closed => Ok(None),
            Served::Child(ChildStart::Now { args }) => {
                Ok(Some(Serving::Child(Start { args: Some(args), parking: None })))
            }
            Served::Child(ChildStart::Parks(parking)) => {
                Ok(Some(Serving::Child(Start { args: None, parking: Some(parking) })))
            }
            Served::Derived(boot) => Ok(Some(Serving::Derived(Self { core: Some(boot) }))),
        }
    }
}

/// A child, from the inside of its sandbox to what it is to run.
#[pyclass]
pub(crate) struct Start {
    args: Option<OwnedFd>,
    parking: Option<Parking>,
}

#[pymethods]
impl Start {
    /// Whether it parks, and gets ready before that.
    #[getter]
    fn parks(&self) -> bool {
        self.parking.is_some()
    }

    /// The descriptor of the pickled args, once. A child that parks waits for them.
    fn args(&mut self) -> PyResult<RawFd> {
        let args = self.parking.take().map(Parking::wait).or_else(|| self.args.take());
        args.map(IntoRawFd::into_raw_fd).ok_or_else(|| PyRuntimeError::new_err("the args are taken"))
    }

    /// Tells the caller why a child that parks cannot get ready, and ends it.
    fn give_up(&mut self, summary: &str) {
        if let Some(parking) = self.parking.take() {
            parking.give_up(summary);
        }
    }
}

/// Who has come back from serving.
#[derive(IntoPyObject)]
pub(crate) enum Serving {
    Child(Start),
    Derived(Boot),
}

/// A child's last word but one: an exception ends it, with an exit code of 1.
#[pyfunction]
pub(crate) fn tell_uncaught() {
    pyspawner::uncaught::tell_uncaught();
}

/// Has a fork of the zygote end with it.
#[pyfunction]
pub(crate) fn end_with_zygote(zygote: i32) -> PyResult<()> {
    zygote::scout::end_with_zygote(zygote).map_err(|errno| std::io::Error::from(errno).into())
}
