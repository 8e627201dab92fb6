//! A cgroup v2 for each child: limits for all of its processes together, an account of what they have used, and a way to end them all. See
//! cgroups(7) and the kernel's `cgroup-v2.rst`.
//!
//! `delegated.rs` finds the part of the tree that the caller may divide. A child is born in its cgroup, which is removed when it is reaped.

mod delegated;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::{Errno, fcntl_dupfd_cloexec, read, retry_on_intr, write};

use super::lock;
use crate::config::Limits;
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::flat_keyed::number;

pub(super) use delegated::{Delegated, Delegation};

/// The microseconds of `cpu.max`'s period.
const PERIOD: u64 = 100_000;

/// More does not fit: of `cpu.max`, and of `pids.max`.
const MAX_QUOTA: u128 = 1_000_000_000_000;
const MAX_PIDS: u64 = 4 * 1024 * 1024;

/// How long the kernel may take to end what is left in a cgroup, or to notice that it is empty.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long to leave it alone meanwhile.
const PAUSE: Duration = Duration::from_micros(500);

/// A child's cgroup.
#[derive(Debug)]
pub(super) struct Cgroup {
    parent: Arc<Delegated>,
    name: String,
    life: Mutex<Life>,
}

#[derive(Debug)]
struct Life {
    /// `None`: it is removed.
    directory: Option<OwnedFd>,
    account: Option<Account>,
}

/// What the processes of a child have used. `None` where the kernel does not say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// CPU time in user mode and in the kernel.
    pub cpu: Option<(Duration, Duration)>,
    /// The most memory at one time, in bytes; Linux 5.19.
    pub peak_memory: Option<u64>,
    /// The most processes and threads at one time; Linux 6.1.
    pub peak_processes: Option<u64>,
    /// How many processes and threads could not be made for the limit.
    pub refused_processes: Option<u64>,
    /// The kernel has ended it for want of memory.
    pub out_of_memory: bool,
}

impl Cgroup {
    /// Makes it, with its limits.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub(super) fn new(parent: Arc<Delegated>, limits: &Limits) -> Result<Self, Failure> {
        let name = parent.next_name();
        mkdirat(&parent.directory, &name, Mode::from_raw_mode(0o755))
            .fail_at(Layer::Cgroup, Step::MakeCgroup)?;
        let opened = open_directory(parent.directory.as_fd(), &name);
        let directory = opened
            .inspect_err(|_| {
                let _ = unlinkat(&parent.directory, &name, AtFlags::REMOVEDIR);
            })
            .fail_at(Layer::Cgroup, Step::MakeCgroup)?;
        // From here on it is removed when it is dropped.
        let limited = limit(directory.as_fd(), limits).fail_at(Layer::Cgroup, Step::LimitCgroup);
        let life = Mutex::new(Life { directory: Some(directory), account: None });
        let cgroup = Self { parent, name, life };
        limited.map(|()| cgroup)
    }

    /// For the clone.
    ///
    /// # Errors
    ///
    /// `EMFILE`; `ENOENT` if it is removed.
    pub(super) fn directory(&self) -> rustix::io::Result<OwnedFd> {
        let life = lock(&self.life);
        fcntl_dupfd_cloexec(life.directory.as_ref().ok_or(Errno::NOENT)?, 3)
    }

    /// Its `cpu.stat`, open.
    ///
    /// # Errors
    ///
    /// `EMFILE`; `ENOENT` if it is removed.
    pub(super) fn cpu_stat(&self) -> rustix::io::Result<File> {
        let life = lock(&self.life);
        let directory = life.directory.as_ref().ok_or(Errno::NOENT)?;
        openat(directory, "cpu.stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(File::from)
    }

    /// After the child's end: ends what it has left behind, asks what all have used, and removes the cgroup. Again, it only answers.
    pub(super) fn finish(&self) -> Account {
        let mut life = lock(&self.life);
        if let (Some(directory), None) = (&life.directory, life.account) {
            end_all(directory.as_fd());
            life.account = Some(read_account(directory.as_fd()));
        }
        self.remove(&mut life);
        life.account.unwrap_or_default()
    }

    /// Whether it is removed, after one more try.
    pub(super) fn is_removed(&self) -> bool {
        self.finish();
        lock(&self.life).directory.is_none()
    }

    fn remove(&self, life: &mut Life) {
        if life.directory.is_some() {
            let removed = unlinkat(&self.parent.directory, &self.name, AtFlags::REMOVEDIR);
            if matches!(removed, Ok(()) | Err(Errno::NOENT)) {
                life.directory = None;
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.is_removed();
    }
}

fn limit(directory: BorrowedFd<'_>, limits: &Limits) -> rustix::io::Result<()> {
    let set = |name, text: String| write_file(directory, name, &text);
    if let Some(bytes) = limits.memory_bytes {
        set("memory.max", bytes.to_string())?;
        // A kernel without swap has no such file.
        if_there(set("memory.swap.max", "0".to_owned()))?;
    }
    // What is left of a program that has lost a process at random is of no use.
    set("memory.oom.group", "1".to_owned())?;
    if let Some(processes) = limits.processes {
        set("pids.max", processes.min(MAX_PIDS).to_string())?;
    }
    if let Some(time) = limits.cpu_per_second {
        let quota = (time.as_micros() * u128::from(PERIOD) / 1_000_000).min(MAX_QUOTA);
        set("cpu.max", format!("{quota} {PERIOD}"))?;
    }
    if limits.nice > 0 {
        // Niceness itself counts only within the cgroup.
        if_there(set("cpu.weight.nice", limits.nice.to_string()))?;
    }
    Ok(())
}

/// With namespaces the kernel has ended them all, and has to notice it only.
fn end_all(directory: BorrowedFd<'_>) {
    let deadline = Instant::now() + PATIENCE;
    let mut killed = false;
    while is_populated(directory) && Instant::now() < deadline {
        if !killed {
            // Linux 5.14. Without, what a child without namespaces leaves behind lives on, and so does the cgroup.
            killed = write_file(directory, "cgroup.kill", "1").is_ok();
        }
        std::thread::sleep(PAUSE);
    }
}

fn is_populated(directory: BorrowedFd<'_>) -> bool {
    read_file(directory, "cgroup.events").is_ok_and(|text| number(&text, "populated") == Some(1))
}

fn read_account(directory: BorrowedFd<'_>) -> Account {
    let file = |name| read_file(directory, name).ok();
    let single = |name| file(name).and_then(|text| text.trim().parse().ok());
    let cpu = file("cpu.stat").and_then(|text| {
        let time = |name| number(&text, name).map(Duration::from_micros);
        Some((time("user_usec")?, time("system_usec")?))
    });
    Account {
        cpu,
        peak_memory: single("memory.peak"),
        peak_processes: single("pids.peak"),
        refused_processes: file("pids.events").and_then(|text| number(&text, "max")),
        out_of_memory: file("memory.events")
            .and_then(|text| number(&text, "oom_kill"))
            .is_some_and(|kills| kills > 0),
    }
}

/// Where a kernel has no such file, there is nothing to set.
fn if_there(set: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match set {
        Err(Errno::NOENT) => Ok(()),
        set => set,
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn write_file(directory: BorrowedFd<'_>, name: &str, text: &str) -> rustix::io::Result<()> {
    let file = openat(directory, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    retry_on_intr(|| write(&file, text.as_bytes())).map(drop)
}

fn read_file(directory: BorrowedFd<'_>, name: &str) -> rustix::io::Result<String> {
    let file = openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = vec![0; 4096];
    let length = retry_on_intr(|| read(&file, &mut text[..]))?;
    text.truncate(length);
    String::from_utf8(text).map_err(|_| Errno::ILSEQ)
}
