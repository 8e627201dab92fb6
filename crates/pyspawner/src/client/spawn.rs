//! Asking the zygote for a child, and locking it in.

use std::fs::File;
use std::io::{Seek, Write};
use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{
    CWD, Gid, MemfdFlags, Mode, OFlags, SealFlags, Uid, fchown, fcntl_add_seals, memfd_create, openat,
};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};

use super::cgroup::Cgroup;
use super::child::{Child, Pipes, Rules};
use super::layers;
use super::living::{Living, release_ended};
use super::mounts::{Sources, text};
use super::network::Prepared;
use super::{Client, Interrupt, channel_error, lock, readable_within, wait_for};
use crate::channel::{Channel, ChannelError};
use crate::config::{self, CgroupUse, Limits, SandboxConfig};
use crate::error::{Error, Failure, Step};
use crate::layer::Layer;
use crate::protocol::{ChildNetwork, Order, Orders, ProtocolError, Report, Request, Rlimits, Spawn, View};
use crate::sandbox::landlock;
use crate::sys::wait::{kill_unreaped, reap_unreaped, wait_pidfd};

/// How often a child is made anew because a living process happens to share its range of host ids.
const MAX_ATTEMPTS: usize = 16;

/// How long a zygote that has dropped a request may take to turn out dead and not merely out of descriptors, in seconds.
pub(super) const DEATH_PATIENCE: u64 = 2;

/// How long a spawn that a signal handler has interrupted waits for the process that it must end, in seconds.
pub(super) const ABANDON_PATIENCE: u64 = 1;

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

impl Client {
    /// Clones a child, waits until its sandbox is complete, and lets it run.
    ///
    /// # Errors
    ///
    /// A configuration that makes no sense; a layer that the kernel refuses; a zygote that has died; a want of descriptors. Nothing is
    /// left behind then, and no user code has run.
    pub fn spawn(
        &self,
        request: &SpawnRequest<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<(Child, Pipes), Error> {
        self.check_owner()?;
        request.sandbox.validate()?;
        let process_name = request.process_name.map(config::process_name).transpose()?;
        let request = &SpawnRequest { process_name, ..*request };

        let (descriptors, pipes) = ChildDescriptors::make(request)?;
        release_ended();
        let cgroup = self.cgroup(&request.sandbox.limits)?;
        let network = &request.sandbox.network;
        let mut network = network.as_ref().map(|network| self.networks.prepare(network)).transpose()?;
        let mut attempt = 1;
        // Dropped last: what a child that failed had is free after its end.
        let (mut sources, first_id, newborn) = loop {
            match self.clone_child(request.sandbox, cgroup.as_deref().ok(), interrupt) {
                Err(Error::Sandbox(Failure { step: Step::ChooseIdRange, .. })) if attempt < MAX_ATTEMPTS => {
                    attempt += 1;
                }
                other => break other?,
            }
        };
        // The zygote answers in order: what was asked for and given up before is known now.
        self.reap_abandoned();
        if let Some(first_id) = first_id {
            descriptors.give_to(first_id + request.sandbox.child_id());
        }
        let proc = if request.sandbox.namespaces {
            None
        } else {
            let path = format!("/proc/{}", newborn.pid);
            Some(
                openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .map_err(Error::io("open"))?,
            )
        };
        let sent = sources.owned_by(first_id, request.sandbox.child_id())?;
        if let Some(network) = &mut network {
            sources.view.files = std::mem::take(&mut network.files);
        }
        let mounts = MountOrders { view: std::mem::take(&mut sources.view), sent };
        // Before user code runs, because it may fail.
        let holds_nothing = sources.uppers.is_empty() && cgroup.is_err() && network.is_none();
        let watched = if holds_nothing { None } else { Some(newborn.duplicate_pidfd()?) };
        let rlimits = self.rlimits(&request.sandbox.limits);
        let layers = newborn.lock_in(request, network.as_mut(), mounts, rlimits, &descriptors, interrupt)?;
        let descriptions = layers::describe_all(
            &layers,
            request.sandbox,
            first_id,
            cgroup.as_deref().err(),
            network.as_ref(),
        );
        let (pid, pidfd) = newborn.release()?;
        let cgroup = cgroup.ok();
        if let Some(child) = watched {
            let network = network.and_then(Prepared::into_place);
            Living { child, uppers: sources.uppers, cgroup: cgroup.clone(), network }.keep();
        }
        let rules = Rules {
            cpu_time: request.sandbox.limits.cpu_time,
            sigsys_is_blocked_call: request.sandbox.namespaces
                && layers.iter().any(|(layer, _)| *layer == Layer::Seccomp),
        };
        Ok((Child::new(pid, pidfd, descriptions, layers, proc, cgroup, rules), pipes))
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
        // Config allows far fewer than fit.
        let spawn = Spawn {
            trees: u8::try_from(trees.len()).unwrap_or(u8::MAX),
            namespaces: sandbox.namespaces,
            cgroup: cgroup.is_some(),
            // More does not fit, and never comes.
            cpu_microseconds: sandbox.limits.cpu_time.and_then(|time| u64::try_from(time.as_micros()).ok()),
        };
        let cgroup = cgroup.map(Cgroup::directory).transpose().map_err(Error::io("dup"))?;
        let cgroup = cgroup.as_ref().map(AsFd::as_fd);
        let descriptors: Vec<_> = iter::once(theirs.as_fd()).chain(cgroup).chain(trees).collect();
        self.ask(Request::Spawn(spawn), &descriptors, interrupt)?;
        drop(theirs);
        let (newborn, first_id) =
            self.await_report(PendingSpawn { private: ours, born: None, pidfd: None }, interrupt)?;
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

/// What the child gets beside its sandbox.
struct ChildDescriptors {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    args: OwnedFd,
}

impl ChildDescriptors {
    /// Everything that can fail for want of descriptors or memory, before anybody is asked for anything.
    fn make(request: &SpawnRequest<'_>) -> Result<(Self, Pipes), Error> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(Error::io("pipe"));
        let ((stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr)) = (pipe()?, pipe()?, pipe()?);
        let descriptors = Self { stdin, stdout, stderr, args: sealed(request.args)? };
        Ok((descriptors, Pipes { stdin: our_stdin, stdout: our_stdout, stderr: our_stderr }))
    }

    /// Makes the pipes the child's own, so that it can open `/dev/stdout` and its like. A caller that may not do so can still spawn: the
    /// open descriptors themselves work for anybody.
    fn give_to(&self, id: u32) {
        for pipe in [&self.stdin, &self.stdout, &self.stderr] {
            let _ = fchown(pipe, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)));
        }
    }
}

/// A memfd with `bytes` that nobody can change any more; `memfd_create(2)`.
fn sealed(bytes: &[u8]) -> Result<OwnedFd, Error> {
    let memfd = memfd_create("pyspawner-args", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(Error::io("memfd_create"))?;
    let mut file = File::from(memfd);
    file.write_all(bytes)
        .and_then(|()| file.rewind())
        .map_err(|source| Error::Io { doing: "writing the args", source })?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
        .map_err(Error::io("sealing the args"))?;
    Ok(file.into())
}

/// A child that was asked for and is not reported yet.
#[derive(Debug)]
pub(super) struct PendingSpawn {
    private: Channel,
    /// The pid that the kernel gave with the child's first word.
    born: Option<i32>,
    /// That process; `None` where there was no descriptor left for it.
    pidfd: Option<OwnedFd>,
}

/// What comes through the private socket before the child is reported.
enum Progress {
    /// The child exists.
    Born,
    /// It waits for its orders.
    Ready(OwnedFd, Option<u32>),
    /// The socket's other end is gone, and no child has it.
    NoChild,
}

impl PendingSpawn {
    fn read(&mut self) -> Result<Progress, Error> {
        let Some(received) = self.private.recv::<Report>().map_err(channel_error)? else {
            return Ok(Progress::NoChild);
        };
        match received.message {
            Report::Born => {
                self.know(received.sender);
                Ok(Progress::Born)
            }
            Report::Spawned { pid, first_id } => {
                self.born = Some(pid);
                let (_, [pidfd]) = received.with().map_err(channel_error)?;
                Ok(Progress::Ready(pidfd, first_id))
            }
            Report::NotSpawned { failure, pid } => {
                self.born = pid;
                Err(failure.into())
            }
            // Its first act failed, before it could say that it is born.
            Report::Failed(failure) => {
                self.know(received.sender);
                Err(failure.into())
            }
            Report::Entered { .. } => {
                Err(ProtocolError::OutOfOrder { waiting_for: "a child's birth" }.into())
            }
        }
    }

    /// Remembers a child that nobody has reported yet.
    fn know(&mut self, pid: Option<i32>) {
        self.born = pid;
        // A handler of SIGCHLD may reap any child, and its pid be another process's soon: from here on only this one is meant.
        self.pidfd = pid.and_then(Pid::from_raw).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    }

    fn into_newborn(self, pidfd: OwnedFd) -> Newborn {
        let pid = self.born.unwrap_or_default();
        Newborn { pid, pidfd: Some(pidfd), private: self.private }
    }

    /// Kills and reaps the child, if there is one.
    fn end(&mut self) {
        if let Some(pid) = self.born.take() {
            kill_and_reap(pid, self.pidfd.as_ref());
        }
    }

    /// Does so if it turns out within some seconds whether there is one. `true`: it did, and it is done.
    pub(super) fn end_within(&mut self, seconds: u64) -> bool {
        while self.born.is_none() && readable_within(self.private.as_fd(), seconds) {
            match self.read() {
                Ok(Progress::Born) => {}
                Ok(Progress::NoChild) => return true,
                Ok(Progress::Ready(..)) | Err(_) => break,
            }
        }
        let is_known = self.born.is_some();
        self.end();
        is_known
    }
}

/// The child's half of the layer `mounts`.
struct MountOrders {
    view: View,
    /// What comes with it.
    sent: Vec<OwnedFd>,
}

/// A child whose sandbox is not complete: dropped, it is killed and reaped.
struct Newborn {
    pid: i32,
    /// `None` once it is released.
    pidfd: Option<OwnedFd>,
    private: Channel,
}

impl Newborn {
    /// Makes the parent's half of the layers, gives the orders, and waits until the child has carried them out. What it runs is ordered at
    /// once, so that it starts the moment it can; with a network, when packets can reach it.
    fn lock_in(
        &self,
        request: &SpawnRequest<'_>,
        network: Option<&mut Prepared<'_>>,
        mounts: MountOrders,
        rlimits: Rlimits,
        descriptors: &ChildDescriptors,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<(Layer, u32)>, Error> {
        let Some(network) = network else {
            self.give_orders(None, request, mounts, rlimits)?;
            self.let_run(descriptors)?;
            return self.await_entered(interrupt);
        };
        let pidfd = self.pidfd.as_ref().ok_or(Error::Closed)?;
        let half = network.make(self.pid, pidfd.as_fd(), interrupt)?;
        let entered = self.give_orders(Some(half), request, mounts, rlimits);
        let entered = entered.and_then(|()| self.await_entered(interrupt)).and_then(|layers| {
            network.settle();
            self.let_run(descriptors).map(|()| layers)
        });
        if entered.is_err() {
            network.undo();
        }
        entered
    }

    fn give_orders(
        &self,
        network: Option<ChildNetwork>,
        request: &SpawnRequest<'_>,
        mounts: MountOrders,
        rlimits: Rlimits,
    ) -> Result<(), Error> {
        let landlock_abi = landlock::abi(request.sandbox.max_landlock_abi);
        let mut optional_layers = request.sandbox.optional_layers();
        // Without namespaces it is the lock, and the child refuses to do without.
        if landlock_abi == 0 && request.sandbox.namespaces {
            optional_layers.retain(|layer| *layer != Layer::Landlock);
        }
        let process_name = request.process_name.map(str::to_owned);
        let MountOrders { view, sent } = mounts;
        let sent: Vec<_> = sent.iter().map(AsFd::as_fd).collect();
        let view = request.sandbox.namespaces.then_some(view);
        let working_dir = request.sandbox.working_dir.as_deref().map(text);
        let enter = Order::Enter(Orders {
            process_name,
            working_dir,
            view,
            network,
            optional_layers,
            landlock_abi,
            rlimits,
        });
        self.order(&enter, &sent)
    }

    fn let_run(&self, descriptors: &ChildDescriptors) -> Result<(), Error> {
        let ChildDescriptors { stdin, stdout, stderr, args } = descriptors;
        self.order(&Order::Run, &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), args.as_fd()])
    }

    fn order(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        match self.private.send(order, descriptors) {
            // A child that has died meanwhile is noticed where its report is awaited, or by its user.
            Ok(()) | Err(ChannelError::Io(Errno::PIPE | Errno::CONNRESET)) => Ok(()),
            Err(error) => Err(channel_error(error)),
        }
    }

    fn await_entered(&self, interrupt: Interrupt<'_>) -> Result<Vec<(Layer, u32)>, Error> {
        let private = &self.private;
        loop {
            wait_for([private.as_fd()], interrupt)?;
            match private.recv::<Report>().map_err(channel_error)?.map(|received| received.message) {
                Some(Report::Entered { layers }) => return Ok(layers),
                Some(Report::Failed(failure)) => return Err(failure.into()),
                Some(Report::Born) => {}
                Some(Report::Spawned { .. } | Report::NotSpawned { .. }) => {
                    return Err(ProtocolError::OutOfOrder { waiting_for: "the child's sandbox" }.into());
                }
                None => return Err(Failure::new(Layer::Namespaces, Step::ChildLost, libc::ECHILD).into()),
            }
        }
    }

    fn duplicate_pidfd(&self) -> Result<OwnedFd, Error> {
        let pidfd = self.pidfd.as_ref().ok_or(Error::Closed)?;
        rustix::io::fcntl_dupfd_cloexec(pidfd, 3).map_err(Error::io("dup"))
    }

    /// The child, complete: from here on it lives until the caller or itself ends it.
    fn release(mut self) -> Result<(i32, OwnedFd), Error> {
        Ok((self.pid, self.pidfd.take().ok_or(Error::Closed)?))
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            kill_and_reap(self.pid, Some(pidfd));
        }
    }
}

/// Ends a child that no user has seen. By number only where the caller had no descriptor left for a pidfd.
fn kill_and_reap(pid: i32, pidfd: Option<&OwnedFd>) {
    let Some(pidfd) = pidfd else {
        kill_unreaped(pid);
        reap_unreaped(pid);
        return;
    };
    // One that has ended is only to be reaped.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    while matches!(wait_pidfd(pidfd, 0), Err(Errno::INTR)) {}
}
