//! The caller's classes: `Client` and `Child`.

use std::cell::RefCell;
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyspawner::client::{
    self, Conversation, DeriveOptions, Interrupt, OptionalPipes, Signal, SpawnRequest, StartOptions,
};
use pyspawner::config::{self, ManagedNetwork, NetworkConfig, SandboxConfig};
use pyspawner::error::Error;

use crate::errors::{from_io, to_python};
use crate::limits::Limits;

/// Runs `work` without the GIL. A Python signal handler that raises gives it up, and its exception is the answer.
fn without_gil<T: Send>(
    py: Python<'_>,
    work: impl Send + FnOnce(Interrupt<'_>) -> Result<T, Error>,
) -> PyResult<T> {
    let (result, raised) = py.detach(|| {
        let raised = RefCell::new(None);
        let check_signals = || {
            #[expect(
                clippy::redundant_closure_for_method_calls,
                reason = "the method alone is not general enough"
            )]
            Python::attach(|py| py.check_signals()).map_err(|error| {
                raised.replace(Some(error));
                Error::Interrupted
            })
        };
        let result = work(&check_signals);
        (result, raised.into_inner())
    });
    match (result, raised) {
        (Err(Error::Interrupted), Some(raised)) => Err(raised),
        (result, _) => result.map_err(|error| to_python(py, error)),
    }
}

/// The same, and whoever has `stop` gives it up too.
fn without_gil_until<T: Send>(
    py: Python<'_>,
    stop: Option<&Stop>,
    work: impl Send + FnOnce(Interrupt<'_>) -> Result<T, Error>,
) -> PyResult<T> {
    without_gil(py, |interrupt| {
        work(&|| match stop {
            Some(stop) if stop.is_set.load(Ordering::Relaxed) => Err(Error::Interrupted),
            _ => interrupt(),
        })
    })
}

/// Gives up the start of a zygote, from another thread, within a tenth of a second.
#[pyclass(frozen)]
#[derive(Default)]
pub(crate) struct Stop {
    is_set: AtomicBool,
}

#[pymethods]
impl Stop {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn set(&self) {
        self.is_set.store(true, Ordering::Relaxed);
    }
}

/// A running zygote.
#[pyclass(frozen)]
pub(crate) struct Client {
    core: Arc<client::Client>,
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (*, executable, arguments, environment, child_main, preload_imports, sys_path, memory_image, warm_children, warm_up, stop=None))]
    #[expect(clippy::too_many_arguments, reason = "what a zygote is made of")]
    fn new(
        py: Python<'_>,
        executable: PathBuf,
        arguments: Vec<OsString>,
        environment: Vec<(OsString, OsString)>,
        child_main: String,
        preload_imports: Vec<String>,
        sys_path: Option<Vec<Vec<u8>>>,
        memory_image: bool,
        warm_children: usize,
        warm_up: Option<String>,
        stop: Option<&Bound<'_, Stop>>,
    ) -> PyResult<Self> {
        let options = StartOptions {
            executable,
            arguments,
            environment,
            child_main,
            preload_imports,
            sys_path,
            memory_image,
            warm_children,
            warm_up,
        };
        let stop = stop.map(Bound::get);
        let core = without_gil_until(py, stop, |interrupt| client::Client::start(options, interrupt))?;
        Ok(Self { core: Arc::new(core) })
    }

    /// A clone of the zygote, with imports of its own.
    #[pyo3(signature = (*, child_main, preload_imports, warm_children, warm_up, stop=None))]
    fn derive(
        &self,
        py: Python<'_>,
        child_main: String,
        preload_imports: Vec<String>,
        warm_children: usize,
        warm_up: Option<String>,
        stop: Option<&Bound<'_, Stop>>,
    ) -> PyResult<Self> {
        let options = DeriveOptions { child_main, preload_imports, warm_children, warm_up };
        let stop = stop.map(Bound::get);
        let core = without_gil_until(py, stop, |interrupt| self.core.derive(options, interrupt))?;
        Ok(Self { core: Arc::new(core) })
    }

    /// The child, and the caller's ends of its stdin, stdout and stderr.
    #[pyo3(signature = (args, *, process_name, sandbox))]
    fn spawn(
        &self,
        py: Python<'_>,
        args: &[u8],
        process_name: Option<&str>,
        sandbox: &Sandbox,
    ) -> PyResult<(Child, RawFd, RawFd, RawFd)> {
        let request = SpawnRequest { args, process_name, sandbox: &sandbox.core };
        let (core, pipes) = without_gil(py, |interrupt| self.core.spawn(&request, interrupt))?;
        Ok((
            Child { core },
            pipes.stdin.into_raw_fd(),
            pipes.stdout.into_raw_fd(),
            pipes.stderr.into_raw_fd(),
        ))
    }

    /// Returns when so many are parked.
    fn prewarm(&self, py: Python<'_>, sandbox: &Sandbox, count: usize) -> PyResult<()> {
        without_gil(py, |interrupt| self.core.prewarm(&sandbox.core, count, interrupt))
    }

    /// Has so many parked, some time.
    fn want_warm(&self, py: Python<'_>, sandbox: &Sandbox, count: usize) -> PyResult<()> {
        py.detach(|| self.core.want_warm(&sandbox.core, count)).map_err(|error| to_python(py, error))
    }

    /// Why no child could be parked, if that was so since this was asked last.
    fn parking_failure(&self, py: Python<'_>) -> Option<PyErr> {
        self.core.parking_failure().map(|error| to_python(py, error))
    }

    /// How many are parked.
    #[getter]
    fn parked(&self) -> usize {
        self.core.parked()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.core.close());
    }

    /// Ends the zygote and leaves its children their watchdog.
    fn retire(&self, py: Python<'_>) {
        py.detach(|| self.core.retire());
    }

    /// Whether, after that, the last child has ended, and nothing is left.
    fn has_ended(&self, py: Python<'_>) -> bool {
        py.detach(|| self.core.has_ended())
    }

    #[getter]
    fn zygote_pid(&self) -> i32 {
        self.core.zygote_pid()
    }

    #[getter]
    fn watchdog_pid(&self) -> i32 {
        self.core.watchdog_pid()
    }

    #[getter]
    fn no_memory_image(&self) -> Option<String> {
        self.core.no_memory_image().map(str::to_owned)
    }

    #[getter]
    fn threads(&self) -> Vec<(String, Vec<String>)> {
        self.core.threads().to_vec()
    }
}

/// How to lock a child in.
#[pyclass(frozen, eq)]
#[derive(PartialEq)]
pub(crate) struct Sandbox {
    core: SandboxConfig,
}

#[pymethods]
impl Sandbox {
    #[new]
    #[pyo3(signature = (*, chroot_dir, mounts, working_dir, proc, namespaces, max_landlock_abi, network, limits, skip_sandbox_except))]
    #[expect(clippy::too_many_arguments, reason = "one a field of SandboxConfig")]
    fn new(
        chroot_dir: Option<PathBuf>,
        mounts: Vec<Py<Mount>>,
        working_dir: Option<PathBuf>,
        proc: bool,
        namespaces: bool,
        max_landlock_abi: Option<u8>,
        network: Option<Py<Network>>,
        limits: Limits,
        skip_sandbox_except: Vec<String>,
    ) -> PyResult<Self> {
        let network = network.map(|network| network.get().core.clone());
        let mounts = mounts.into_iter().map(|mount| mount.get().core.clone()).collect();
        let core = SandboxConfig {
            chroot_dir,
            mounts,
            working_dir,
            proc,
            namespaces,
            max_landlock_abi,
            network,
            limits: limits.into_core()?,
            skip_sandbox_except,
        };
        Ok(Self { core })
    }
}

/// Something to be mounted in a child's root.
#[pyclass(frozen)]
pub(crate) struct Mount {
    core: config::Mount,
}

#[pymethods]
impl Mount {
    #[staticmethod]
    fn bind(source: PathBuf, target: PathBuf, writable: bool) -> Self {
        Self { core: config::Mount::Bind { source, target, writable } }
    }

    #[staticmethod]
    fn tmpfs(target: PathBuf, size_bytes: u64, max_inodes: u64) -> Self {
        Self { core: config::Mount::Tmpfs { target, size_bytes, max_inodes } }
    }

    #[staticmethod]
    fn overlay(target: PathBuf, size_bytes: u64, lower: Option<PathBuf>, upper: Option<PathBuf>) -> Self {
        Self { core: config::Mount::Overlay { target, size_bytes, lower, upper } }
    }

    #[staticmethod]
    fn proc(target: PathBuf) -> Self {
        Self { core: config::Mount::Proc { target } }
    }

    #[staticmethod]
    fn dev(target: PathBuf, ptmx: bool) -> Self {
        Self { core: config::Mount::Dev { target, ptmx } }
    }
}

/// A child's network.
#[pyclass(frozen)]
pub(crate) struct Network {
    core: config::Network,
}

#[pymethods]
impl Network {
    #[staticmethod]
    fn loopback() -> Self {
        Self { core: config::Network::Loopback }
    }

    #[staticmethod]
    fn veth(
        kernel_veth_name: String,
        child_veth_name: String,
        kernel_ipv4_address: String,
        child_ipv4_address: String,
    ) -> Self {
        let config =
            NetworkConfig { kernel_veth_name, child_veth_name, kernel_ipv4_address, child_ipv4_address };
        Self { core: config::Network::Veth(config) }
    }

    #[staticmethod]
    #[pyo3(signature = (*, allow, deny, ipv6, dns, bandwidth, subnet, subnet6))]
    fn managed(
        allow: Vec<String>,
        deny: Vec<String>,
        ipv6: bool,
        dns: Option<Vec<String>>,
        bandwidth: Option<NonZeroU64>,
        subnet: String,
        subnet6: String,
    ) -> Self {
        let config = ManagedNetwork { allow, deny, ipv6, dns, bandwidth, subnet, subnet6 };
        Self { core: config::Network::Managed(config) }
    }
}

/// A running child.
#[pyclass(frozen)]
pub(crate) struct Child {
    core: client::Child,
}

#[pymethods]
impl Child {
    #[getter]
    fn pid(&self) -> i32 {
        self.core.pid()
    }

    #[getter]
    fn layers(&self) -> Vec<(&'static str, &str)> {
        self.core.layers().iter().map(|(layer, detail)| (layer.name(), detail.as_str())).collect()
    }

    #[getter]
    fn layer_nanoseconds(&self) -> Vec<(&'static str, u32)> {
        self.core.layer_times().iter().map(|(layer, time)| (layer.name(), *time)).collect()
    }

    fn kill(&self, py: Python<'_>) -> PyResult<()> {
        self.core.kill().map_err(|error| to_python(py, error))
    }

    fn send_signal(&self, py: Python<'_>, signal: i32) -> PyResult<()> {
        let named = Signal::from_named_raw(signal).ok_or_else(|| {
            PyValueError::new_err(format!("{signal} is not the number of a standard signal"))
        })?;
        self.core.send_signal(named).map_err(|error| to_python(py, error))
    }

    fn time_out(&self) {
        self.core.time_out();
    }

    #[getter]
    fn pidfd(&self) -> RawFd {
        self.core.pidfd().as_raw_fd()
    }

    fn wait(&self, py: Python<'_>, options: i32) -> PyResult<(i32, i32)> {
        without_gil(py, |interrupt| self.core.wait(options, interrupt))
    }

    /// How it ended, if that is known.
    #[getter]
    fn ended(&self) -> Option<Ended> {
        self.core.ended().map(Ended::from)
    }

    /// Its status, after a look.
    fn poll(&self, py: Python<'_>) -> PyResult<Option<i32>> {
        let ended = py.detach(|| self.core.poll()).map_err(|error| to_python(py, error))?;
        Ok(ended.map(|ended| ended.status))
    }

    /// Takes the descriptors, which must be open and the caller's to give.
    #[pyo3(signature = (*, stdin, stdout, stderr, already_read, data, timeout, max_output))]
    #[expect(clippy::too_many_arguments, reason = "one a parameter of communicate()")]
    fn communicate(
        &self,
        py: Python<'_>,
        stdin: Option<RawFd>,
        stdout: Option<RawFd>,
        stderr: Option<RawFd>,
        already_read: (&[u8], &[u8]),
        data: &[u8],
        timeout: Option<f64>,
        max_output: usize,
    ) -> PyResult<Completed> {
        let pipes = OptionalPipes { stdin: take(stdin), outputs: [take(stdout), take(stderr)] };
        let conversation = Conversation {
            input: data,
            // A time that does not fit never comes.
            timeout: timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            max_output,
            already_read: already_read.into(),
        };
        let completed = without_gil(py, |interrupt| self.core.communicate(pipes, &conversation, interrupt))?;
        Completed::new(py, completed)
    }
}

#[expect(unsafe_code, reason = "descriptors come from Python as numbers")]
fn take(number: Option<RawFd>) -> Option<OwnedFd> {
    // SAFETY: `_process.py` has detached them from the file objects that owned them.
    number.map(|number| unsafe { OwnedFd::from_raw_fd(number) })
}

/// What became of a child.
#[pyclass(frozen, get_all)]
pub(crate) struct Completed {
    ended: Py<Ended>,
    stdout: Py<PyBytes>,
    stderr: Py<PyBytes>,
    stdout_dropped: u64,
    stderr_dropped: u64,
}

impl Completed {
    fn new(py: Python<'_>, completed: client::Completed) -> PyResult<Self> {
        let client::Completed { ended, outputs: [stdout, stderr] } = completed;
        Ok(Self {
            ended: Py::new(py, Ended::from(ended))?,
            stdout: PyBytes::new(py, &stdout.kept).unbind(),
            stderr: PyBytes::new(py, &stderr.kept).unbind(),
            stdout_dropped: stdout.dropped,
            stderr_dropped: stderr.dropped,
        })
    }
}

/// How a child ended, and what it used.
#[pyclass(frozen, get_all)]
pub(crate) struct Ended {
    status: i32,
    cause: &'static str,
    blocked_syscall: Option<&'static str>,
    wall_seconds: f64,
    user_seconds: f64,
    system_seconds: f64,
    peak_memory_bytes: u64,
    peak_processes: Option<u64>,
    refused_processes: Option<u64>,
}

impl From<client::Ended> for Ended {
    fn from(ended: client::Ended) -> Self {
        Self {
            status: ended.status,
            cause: ended.cause.name(),
            blocked_syscall: ended.blocked_syscall,
            wall_seconds: ended.wall.as_secs_f64(),
            user_seconds: ended.user.as_secs_f64(),
            system_seconds: ended.system.as_secs_f64(),
            peak_memory_bytes: ended.peak_memory,
            peak_processes: ended.peak_processes,
            refused_processes: ended.refused_processes,
        }
    }
}

/// Opens the regular file `path` below `directory` for reading. Its descriptor.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "arguments come as values")]
pub(crate) fn open_beneath(py: Python<'_>, directory: PathBuf, path: PathBuf) -> PyResult<RawFd> {
    let opened = py.detach(|| client::open_beneath(client::open_directory(&directory)?.as_fd(), &path));
    opened.map(IntoRawFd::into_raw_fd).map_err(|error| from_io(&error, &directory.join(path)))
}
