//! Asking the zygote for a child, and locking it in.

use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::cgroup::Cgroup;
use super::child::{Child, Pipes, Rules};
use super::descriptors::ChildDescriptors;
use super::layers;
use super::living::{Living, release_ended};
use super::mounts::{Identity, Sources, text};
use super::network::Prepared;
use super::newborn::{Newborn, PendingSpawn, Progress};
use super::{Client, Interrupt, channel_error, lock, readable_within, wait_for};
use crate::channel::{Channel, ChannelError};
use crate::config::{self, CgroupUse, Limits, SandboxConfig};
use crate::error::{Error, Failure, Step};
use crate::layer::Layer;
use crate::protocol::{Orders, Request, Rlimits, Spawn};
use crate::sandbox::landlock;

/// How often a child is made anew because a living process happens to share its range of host ids.
const MAX_ATTEMPTS: usize = 16;

/// How long a zygote that has dropped a request may take to turn out dead and not merely out of descriptors, in seconds.
pub(super) const DEATH_PATIENCE: u64 = 2;

/// How long a spawn that a signal handler has interrupted waits for the process that it must end, in seconds.
pub(super) const ABANDON_PATIENCE: u64 = 1;

/// How long a spawn tries again that lacked what parked children had: the kernel takes their namespaces apart in its own time.
const ROOM_PATIENCE: Duration = Duration::from_secs(1);

/// How long to leave a zygote alone whose queue of some hundred requests is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(2);

/// What to run and how to lock it in.
#[derive(Debug)]
pub struct SpawnRequest<'a> {
    /// The pickled args.
    pub args: &'a [u8],
    /// For `comm` and the command line.
    pub process_name: Option<&'a str>,
    /// The sandbox.
    pub sandbox: &'a SandboxConfig,
}

/// What becomes of a new child.
#[derive(Clone, Copy)]
pub(super) enum Then<'a> {
    /// It runs at once.
    Run { process_name: Option<&'a str>, descriptors: &'a ChildDescriptors },
    /// It gets ready, and waits to be woken.
    Park,
}

/// What a parked child shows in ps and top.
const PARKED_NAME: &str = "pyspawner: warm";

impl Client {
    /// Wakes a parked child, or clones a new one, waits until its sandbox is complete, and lets it run.
    ///
    /// # Errors
    ///
    /// A configuration that makes no sense; a layer that the kernel refuses; a zygote that has died; a want of descriptors. Nothing is
    /// left behind then, and no user code has run.
    pub fn spawn(
        self: &Arc<Self>,
        request: &SpawnRequest<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<(Child, Pipes), Error> {
        self.check_owner()?;
        request.sandbox.validate()?;
        let process_name = request.process_name.map(config::process_name).transpose()?;
        let request = &SpawnRequest { process_name, ..*request };
        let spawn = || {
            let (descriptors, pipes) = ChildDescriptors::make(request.args)?;
            let child = match self.wake(request, &descriptors, interrupt)? {
                Some(child) => child,
                None => self.spawn_anew(request, &descriptors, interrupt)?,
            };
            Ok((child, pipes))
        };
        match spawn() {
            Err(error) if is_shortage(&error) && self.pools.make_room() => {
                let deadline = Instant::now() + ROOM_PATIENCE;
                loop {
                    match spawn() {
                        Err(error) if is_shortage(&error) && Instant::now() < deadline => {}
                        other => break other,
                    }
                    std::thread::sleep(QUEUE_PAUSE);
                    interrupt()?;
                }
            }
            other => other,
        }
    }

    fn spawn_anew(
        &self,
        request: &SpawnRequest<'_>,
        descriptors: &ChildDescriptors,
        interrupt: Interrupt<'_>,
    ) -> Result<Child, Error> {
        let then = Then::Run { process_name: request.process_name, descriptors };
        self.lock_in(request.sandbox, then, interrupt)?.release()
    }

    /// A child in its sandbox. Any failure ends it.
    pub(super) fn lock_in(
        &self,
        sandbox: &SandboxConfig,
        then: Then<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<Inside, Error> {
        release_ended();
        let cgroup = self.cgroup(&sandbox.limits)?;
        let network = &sandbox.network;
        let mut network = network.as_ref().map(|network| self.networks.prepare(network)).transpose()?;
        let mut attempt = 1;
        // Dropped last: what a child that failed had is free after its end.
        let (mut sources, first_id, newborn) = loop {
            match self.clone_child(sandbox, cgroup.as_deref().ok(), then, interrupt) {
                Err(Error::Sandbox(Failure { step: Step::ChooseIdRange, .. })) if attempt < MAX_ATTEMPTS => {
                    attempt += 1;
                }
                other => break other?,
            }
        };
        // The zygote answers in order: what was asked for and given up before is known now.
        self.reap_abandoned();
        if let (Then::Run { descriptors, .. }, Some(first_id)) = (then, first_id) {
            descriptors.give_to(first_id + sandbox.child_id());
        }
        let proc = if sandbox.namespaces {
            None
        } else {
            let path = format!("/proc/{}", newborn.pid);
            Some(
                openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .map_err(Error::io("open"))?,
            )
        };
        let sent = sources.owned_by(first_id, sandbox.child_id())?;
        if let Some(network) = &mut network {
            sources.view.files = std::mem::take(&mut network.files);
        }
        // Before user code runs, because it may fail.
        let holds_nothing = sources.uppers.is_empty() && cgroup.is_err() && network.is_none();
        let watched = if holds_nothing { None } else { Some(newborn.duplicate_pidfd()?) };
        let orders = self.orders(sandbox, &mut sources, then);
        let layers = enter(&newborn, orders, &sent, network.as_mut(), then, interrupt)?;
        let descriptions =
            layers::describe_all(&layers, sandbox, first_id, cgroup.as_deref().err(), network.as_ref());
        let rules = Rules {
            cpu_time: sandbox.limits.cpu_time,
            sigsys_is_blocked_call: sandbox.namespaces
                && layers.iter().any(|(layer, _)| *layer == Layer::Seccomp),
        };
        let cgroup = cgroup.ok();
        let holds = watched.map(|child| {
            let network = network.and_then(Prepared::into_place);
            Living { child, uppers: sources.uppers, cgroup: cgroup.clone(), network }
        });
        let (identities, child_id) = (sources.identities, sandbox.child_id());
        Ok(Inside {
            newborn,
            first_id,
            layers,
            descriptions,
            proc,
            cgroup,
            rules,
            child_id,
            identities,
            holds,
        })
    }

    fn orders(&self, sandbox: &SandboxConfig, sources: &mut Sources, then: Then<'_>) -> Orders {
        let landlock_abi = landlock::abi(sandbox.max_landlock_abi);
        let mut optional_layers = sandbox.optional_layers();
        // Without namespaces it is the lock, and the child refuses to do without.
        if landlock_abi == 0 && sandbox.namespaces {
            optional_layers.retain(|layer| *layer != Layer::Landlock);
        }
        let (process_name, parks) = match then {
            Then::Run { process_name, .. } => (process_name, false),
            Then::Park => (Some(PARKED_NAME), true),
        };
        Orders {
            process_name: process_name.map(str::to_owned),
            working_dir: sandbox.working_dir.as_deref().map(text),
            view: sandbox.namespaces.then(|| std::mem::take(&mut sources.view)),
            network: None,
            optional_layers,
            landlock_abi,
            rlimits: self.rlimits(&sandbox.limits),
            parks,
        }
    }

    /// A cgroup for a child; or, if it may do without, why there is none.
    fn cgroup(&self, limits: &Limits) -> Result<Result<Arc<Cgroup>, Failure>, Error> {
        // Nothing else can set the pace of a CPU.
        let is_required = limits.cgroup == CgroupUse::Required || limits.cpu_per_second.is_some();
        if limits.cgroup == CgroupUse::Never {
            return Ok(Err(Failure::new(Layer::Cgroup, Step::FindCgroup, libc::ECANCELED)));
        }
        match self.delegation.find(is_required) {
            Ok(delegated) => Ok(Ok(Arc::new(Cgroup::new(delegated, limits)?))),
            Err(failure) if is_required => Err(failure.into()),
            Err(failure) => Ok(Err(failure)),
        }
    }

    fn rlimits(&self, limits: &Limits) -> Rlimits {
        Rlimits {
            data_bytes: limits.memory_bytes.map(|bytes| bytes.saturating_add(self.data_bytes)),
            // Behind the watchdog. The kernel counts this in ticks, and may be far from the truth to either side.
            cpu_seconds: limits.cpu_time.map(|time| time.saturating_mul(3).as_secs() / 2 + 1),
            processes: limits.processes,
            open_files: limits.open_files,
            file_bytes: limits.file_bytes,
            nice: limits.nice,
        }
    }

    /// A child that waits for its orders, and the first host id of its range.
    fn clone_child(
        &self,
        sandbox: &SandboxConfig,
        cgroup: Option<&Cgroup>,
        then: Then<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<(Sources, Option<u32>, Newborn), Error> {
        if !sandbox.namespaces && !geteuid().is_root() {
            // It has no other user's id to become.
            return Err(Failure::new(Layer::Setuid, Step::SetUid, libc::EPERM).into());
        }
        let sources = Sources::open(sandbox)?;
        let (ours, theirs) = Channel::pair().map_err(Error::io("socketpair"))?;
        ours.want_sender().map_err(Error::io("setsockopt(SO_PASSCRED)"))?;
        let trees = sources.trees.iter().map(AsFd::as_fd);
        let cpu_time = match then {
            Then::Run { .. } => sandbox.limits.cpu_time,
            // It is limited when it has parked.
            Then::Park => None,
        };
        // Config allows far fewer than fit.
        let spawn = Spawn {
            trees: u8::try_from(trees.len()).unwrap_or(u8::MAX),
            namespaces: sandbox.namespaces,
            cgroup: cgroup.is_some(),
            // More does not fit, and never comes.
            cpu_microseconds: cpu_time.and_then(|time| u64::try_from(time.as_micros()).ok()),
        };
        let cgroup = cgroup.map(Cgroup::directory).transpose().map_err(Error::io("dup"))?;
        let cgroup = cgroup.as_ref().map(AsFd::as_fd);
        let descriptors: Vec<_> = iter::once(theirs.as_fd()).chain(cgroup).chain(trees).collect();
        self.ask(Request::Spawn(spawn), &descriptors, interrupt)?;
        let theirs = matches!(then, Then::Park).then_some(theirs);
        let pending = PendingSpawn { private: ours, born: None, pidfd: None };
        let (mut newborn, first_id) = self.await_report(pending, interrupt)?;
        newborn.its_end = theirs;
        Ok((sources, first_id, newborn))
    }

    /// Sends one request. A zygote that is so far behind that its queue is full is not waited for with the lock held.
    pub(super) fn ask(
        &self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error> {
        loop {
            // Bound to a name, so that the lock is given back before anything else is done.
            let sent = lock(&self.connection).as_ref().ok_or(Error::Closed)?.try_send(&request, descriptors);
            match sent {
                Err(ChannelError::Io(Errno::AGAIN)) => {}
                Err(ChannelError::Io(Errno::PIPE | Errno::CONNRESET)) => return Err(self.died()),
                other => return other.map_err(channel_error),
            }
            std::thread::sleep(QUEUE_PAUSE);
            interrupt()?;
        }
    }

    /// Waits until the zygote reports the child, or until it is certain that there will be none.
    fn await_report(
        &self,
        mut pending: PendingSpawn,
        interrupt: Interrupt<'_>,
    ) -> Result<(Newborn, Option<u32>), Error> {
        let mut zygote_lives = true;
        loop {
            let ready = if zygote_lives {
                wait_for([pending.private.as_fd(), self.zygote.pidfd()], interrupt)
            } else {
                // A child that was cloned says so even now; if there is none, its end of the socket died with the zygote.
                wait_for([pending.private.as_fd()], interrupt).map(|[private]| [private, false])
            };
            let [reported, zygote_ended] = match ready {
                Ok(ready) => ready,
                Err(error) => {
                    // The request cannot be taken back. A zygote that does not answer now is asked again after the next one.
                    if !pending.end_within(ABANDON_PATIENCE) {
                        lock(&self.abandoned).push(pending);
                    }
                    return Err(error);
                }
            };
            if reported {
                match pending.read() {
                    Ok(Progress::Born) => {}
                    Ok(Progress::Ready(pidfd, first_id)) => {
                        return Ok((pending.into_newborn(pidfd), first_id));
                    }
                    Ok(Progress::NoChild) => {
                        // It may have said that it was born, and been killed after that.
                        pending.end();
                        // A zygote that dies loses its descriptors a little before its pidfd tells.
                        return Err(if readable_within(self.zygote.pidfd(), DEATH_PATIENCE) {
                            self.died()
                        } else {
                            Failure::new(Layer::Namespaces, Step::ZygoteRefused, libc::EIO).into()
                        });
                    }
                    Err(error) => {
                        pending.end();
                        return Err(error);
                    }
                }
            } else {
                zygote_lives &= !zygote_ended;
            }
            if !zygote_lives && pending.born.is_some() {
                pending.end();
                return Err(self.died());
            }
        }
    }

    pub(super) fn died(&self) -> Error {
        Error::ZygoteDied { pid: self.zygote.pid(), status: self.zygote.kill() }
    }
}

/// Makes the parent's half of the layers, gives the orders, and waits until the child has carried them out. What it runs is ordered at once,
/// so that it starts the moment it can; with a network, when packets can reach it.
fn enter(
    newborn: &Newborn,
    orders: Orders,
    sent: &[OwnedFd],
    network: Option<&mut Prepared<'_>>,
    then: Then<'_>,
    interrupt: Interrupt<'_>,
) -> Result<Vec<(Layer, u32)>, Error> {
    let let_run = || match then {
        Then::Run { descriptors, .. } => newborn.run(descriptors),
        Then::Park => Ok(()),
    };
    let Some(network) = network else {
        newborn.enter(orders, sent)?;
        let_run()?;
        return newborn.await_entered(interrupt);
    };
    let pidfd = newborn.pidfd.as_ref().ok_or(Error::Closed)?;
    let half = network.make(newborn.pid, pidfd.as_fd(), interrupt)?;
    let entered = newborn.enter(Orders { network: Some(half), ..orders }, sent);
    let entered = entered.and_then(|()| newborn.await_entered(interrupt)).and_then(|layers| {
        network.settle();
        let_run().map(|()| layers)
    });
    if entered.is_err() {
        network.undo();
    }
    entered
}

/// A child whose sandbox is complete. Dropped before it is released, it is killed and reaped, and what it had is free after that.
#[derive(Debug)]
pub(super) struct Inside {
    pub(super) newborn: Newborn,
    pub(super) first_id: Option<u32>,
    layers: Vec<(Layer, u32)>,
    descriptions: Vec<(Layer, String)>,
    proc: Option<OwnedFd>,
    pub(super) cgroup: Option<Arc<Cgroup>>,
    pub(super) rules: Rules,
    /// Of its user code.
    pub(super) child_id: u32,
    /// What it was given of the filesystem.
    pub(super) identities: Vec<Identity>,
    /// What it has for as long as it lives.
    pub(super) holds: Option<Living>,
}

impl Inside {
    /// The child, its user's from here on.
    pub(super) fn release(self) -> Result<Child, Error> {
        let (pid, pidfd) = self.newborn.release()?;
        if let Some(living) = self.holds {
            living.keep();
        }
        Ok(Child::new(pid, pidfd, self.descriptions, self.layers, self.proc, self.cgroup, self.rules))
    }
}

/// Whether it is what parked children have that is missing: namespaces, processes, memory, descriptors.
fn is_shortage(error: &Error) -> bool {
    let errno = match error {
        Error::Sandbox(failure) => Some(failure.errno),
        Error::Io { source, .. } => source.raw_os_error(),
        _ => None,
    };
    let short = [libc::ENOSPC, libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::EUSERS];
    errno.is_some_and(|errno| short.contains(&errno))
}
