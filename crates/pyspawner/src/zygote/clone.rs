//! The serve loop, and the moment of the clone: the fork guard.
//!
//! A clone's timeline: the caller sends one end of a private socket. The zygote clones itself; the child says that it is born and waits.
//! The zygote writes its id map, has the watchdog watch it, reports it to the caller and forgets it. From then on caller and child speak
//! alone: orders, sandbox, then stdin, stdout, stderr and args.

use std::ffi::CString;
use std::mem::ManuallyDrop;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::channel::Channel;
use crate::config::{CHILD_ID, DEFAULT_PROCESS_NAME};
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::protocol::{CpuBudget, Order, Report, Request, Spawn};
use crate::sandbox;
use crate::sandbox::mounts::{Template, stage::stage};
use crate::sys::clone::Cloned;
use crate::sys::kernel::{exit_now, set_comm};
use crate::sys::{descriptors, title::Title};

use super::host::{Host, HostUser, go_back};
use super::memory_image::MemoryImage;
use super::parking::Parking;
use super::plan::{Plan, Prepared};
use super::watchdog::Watchdog;
use super::{Boot, ZygoteError, receive};

/// Links to `/proc/self/task`: its own, its name, and a directory a thread.
const SINGLE_THREADED_LINKS: usize = 3;

/// The interpreter's own duties around a fork.
pub trait ForkHooks {
    /// Before the clone, in the zygote.
    fn before(&mut self);
    /// After it, in the zygote, whether it worked or not.
    fn after_in_parent(&mut self);
    /// After it, in the child, inside the sandbox.
    fn after_in_child(&mut self);
}

/// How serving ended.
#[derive(Debug)]
pub enum Served {
    /// This is the zygote, and the caller has closed its Client or is gone.
    Closed,
    /// This is a child, inside its sandbox.
    Child(ChildStart),
    /// This is a clone that is to be a zygote of its own.
    Derived(Boot),
}

/// What a child does next.
#[derive(Debug)]
pub enum ChildStart {
    /// It runs. Its standard streams are its own.
    Now {
        /// The pickled args.
        args: OwnedFd,
    },
    /// It gets ready to run, and parks. Its standard streams are still the zygote's.
    Parks(Parking),
}

/// The zygote as it serves.
#[derive(Debug)]
pub struct Zygote {
    channel: Channel,
    watchdog: Watchdog,
    pub(super) title: Option<Title>,
    pub(super) plan: Plan,
    image: Option<MemoryImage>,
}

impl Zygote {
    pub(super) fn new(
        channel: Channel,
        watchdog: Watchdog,
        title: Option<Title>,
        plan: Plan,
        image: Option<MemoryImage>,
    ) -> Self {
        Self { channel, watchdog, title, plan, image }
    }

    /// Clones one process for each request, until the caller closes the connection. Returns in the zygote once, and once in every clone.
    ///
    /// # Errors
    ///
    /// The watchdog or the connection broke. Children already made live on.
    pub fn serve(mut self, hooks: &mut dyn ForkHooks) -> Result<Served, ZygoteError> {
        loop {
            let request = match receive::<Request>(&self.channel) {
                Err(ZygoteError::CallerGone) => return Ok(Served::Closed),
                other => other?,
            };
            // Without a descriptor left, the private socket goes, and its other end tells the caller so.
            let mut descriptors = request.descriptors.into_iter();
            let Some(private) = descriptors.next().map(Channel::from) else { continue };
            let spawn = match request.message {
                Request::Spawn(spawn) => spawn,
                Request::Derive => match self.derive(private, hooks) {
                    ControlFlow::Continue(zygote) => {
                        self = zygote;
                        continue;
                    }
                    ControlFlow::Break(boot) => return Ok(Served::Derived(boot)),
                },
            };
            if request.descriptors_lost {
                let failure = Failure::new(Layer::Mounts, Step::StageTree, libc::EMFILE);
                report(&private, &Report::NotSpawned { failure, pid: None }, &[]);
                continue;
            }
            let Spawn { namespaces, cgroup, cpu_microseconds, .. } = spawn;
            let cgroup = cgroup.then(|| descriptors.next()).flatten();
            if let Err(failure) = if namespaces { self.plan.prepare() } else { Ok(()) } {
                report(&private, &Report::NotSpawned { failure, pid: None }, &[]);
                continue;
            }
            hooks.before();
            let trees: Vec<OwnedFd> = descriptors.collect();
            let staged = match self.check_threads().and_then(|()| stage(&trees, self.plan.is_rootless())) {
                Ok(staged) => staged,
                Err(failure) => {
                    hooks.after_in_parent();
                    report(&private, &Report::NotSpawned { failure, pid: None }, &[]);
                    continue;
                }
            };
            let host_user = (!namespaces).then(HostUser::choose);
            match self.clone(namespaces, cgroup.as_ref()) {
                Ok(Cloned::Child) => {
                    std::mem::forget((staged, trees, cgroup));
                    let start = self.become_child(private, host_user);
                    hooks.after_in_child();
                    return Ok(Served::Child(start));
                }
                Ok(Cloned::Parent { pid, pidfd }) => {
                    // The child waits for this; the interpreter, whose every page is to be copied again, can wait for both.
                    drop((staged, trees));
                    let of_cgroup = cgroup.is_some();
                    let budget =
                        cpu_microseconds.map(|microseconds| CpuBudget { microseconds, of_cgroup, pid });
                    let reported = self.set_up(&private, pid, &pidfd, host_user, budget, cgroup.as_ref());
                    hooks.after_in_parent();
                    if let Some(image) = &mut self.image {
                        image.after_clone();
                    }
                    reported?;
                }
                Err(failure) => {
                    hooks.after_in_parent();
                    report(&private, &Report::NotSpawned { failure, pid: None }, &[]);
                }
            }
        }
    }

    #[expect(unsafe_code, reason = "the fork guard")]
    fn clone(&self, namespaces: bool, cgroup: Option<&OwnedFd>) -> Result<Cloned, Failure> {
        // SAFETY: single-threaded: `check_threads` has counted them, after the last foreign code that has run here.
        unsafe { sandbox::namespaces::clone_child(self.plan.thread, namespaces, cgroup.map(AsFd::as_fd)) }
    }

    /// Fork hooks of imported modules run for every child, and may start threads.
    pub(super) fn check_threads(&self) -> Result<(), Failure> {
        let tasks = rustix::fs::statat(self.plan.ranges.proc(), "self/task", AtFlags::empty());
        match tasks {
            Ok(stat) if usize::try_from(stat.st_nlink) == Ok(SINGLE_THREADED_LINKS) => Ok(()),
            Ok(_) => Err(Failure::new(Layer::Namespaces, Step::CountThreads, libc::EAGAIN)),
            Err(errno) => Err(errno).fail_at(Layer::Namespaces, Step::CountThreads),
        }
    }

    /// The parent's half: id map, rank, watchdog, report.
    fn set_up(
        &self,
        private: &Channel,
        pid: i32,
        pidfd: &OwnedFd,
        host_user: Option<HostUser>,
        budget: Option<CpuBudget>,
        cgroup: Option<&OwnedFd>,
    ) -> Result<(), ZygoteError> {
        let number = pid.unsigned_abs();
        let prepared = if host_user.is_none() && self.plan.is_rootless() {
            self.plan.ranges.write_single(pid).map(|()| None)
        } else if self.plan.ranges.is_shared(number) {
            Err(Failure::new(Layer::IdMap, Step::ChooseIdRange, libc::EAGAIN))
        } else if let Some(user) = host_user {
            Ok(Some(user.first_id(&self.plan.ranges, number)))
        } else {
            self.plan.ranges.write(pid).map(Some)
        };
        let proc = self.plan.ranges.proc();
        let ranked =
            prepared.and_then(|first_id| sandbox::rlimits::rank_for_oom(proc, pid).map(|()| first_id));
        let watched = ranked.and_then(|first_id| match self.watchdog.watch(pidfd.as_fd(), budget, cgroup) {
            Ok(()) => Ok(first_id),
            Err(errno) => {
                Err(Failure::new(Layer::Namespaces, Step::RegisterWithWatchdog, errno.raw_os_error()))
            }
        });
        match watched {
            Ok(first_id) => {
                if private.send(&Report::Spawned { pid, first_id }, &[pidfd.as_fd()]).is_err() {
                    // Nobody will order it anything. Its end tells a caller that is still there.
                    let _ = pidfd_send_signal(pidfd, Signal::KILL);
                }
                Ok(())
            }
            Err(failure) => {
                // Only its parent, the caller, can reap it.
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
                report(private, &Report::NotSpawned { failure, pid: Some(pid) }, &[]);
                // A zygote without its watchdog would make children that outlive a crashed caller.
                if failure.step == Step::RegisterWithWatchdog && failure.errno == Errno::PIPE.raw_os_error() {
                    return Err(ZygoteError::io("the watchdog has died")(Errno::PIPE));
                }
                Ok(())
            }
        }
    }

    /// The child's half, from the clone to the inside of its sandbox. Any failure ends the process here.
    #[expect(unsafe_code, reason = "the fork guard")]
    fn become_child(self, private: Channel, host_user: Option<HostUser>) -> ChildStart {
        let guard = ExitOnUnwind;
        // The zygote's for ever: its descriptors are closed by number, and to free its memory would copy it.
        let zygote = ManuallyDrop::new(self);
        let plan = &zygote.plan;
        let Host { mounts, working_dir, visible, .. } = &plan.host;
        let place = match (&plan.prepared, host_user) {
            (Prepared::Yes(template), None) => Place::Stage(template),
            (prepared, user) => {
                // The zygote clones with namespaces only when it is prepared for that.
                let user = user.unwrap_or_else(HostUser::choose);
                let id = user.first_id(&plan.ranges, std::process::id()) + CHILD_ID;
                let was_left = !matches!(prepared, Prepared::NotYet);
                if let Err(failure) = if was_left { go_back(mounts, working_dir) } else { Ok(()) } {
                    fail(&private, failure);
                }
                Place::Host { id, visible }
            }
        };
        // SAFETY: the owners of the zygote's descriptors are never dropped, and not used again but for `proc`, of which `close_all_except`
        // takes care. Imported modules may own others, which Python knows as numbers only.
        let closed = unsafe {
            descriptors::close_all_except(
                plan.ranges.proc().as_fd(),
                &[
                    BorrowedFd::borrow_raw(0),
                    BorrowedFd::borrow_raw(1),
                    BorrowedFd::borrow_raw(2),
                    private.as_fd(),
                ],
            )
        };
        if let Err(errno) = closed {
            fail(&private, Failure::new(Layer::Session, Step::CloseDescriptors, errno.raw_os_error()));
        }
        report(&private, &Report::Born, &[]);
        let start = obey(private, zygote.title, &place);
        std::mem::forget(guard);
        start
    }
}

/// Where a child is born.
enum Place<'a> {
    /// In the stage, with namespaces.
    Stage(&'a Template),
    /// In the host's own view, without.
    Host { id: u32, visible: &'a [CString] },
}

/// Receives the two orders and carries them out. Answers what is left of the second.
fn obey(private: Channel, title: Option<Title>, place: &Place<'_>) -> ChildStart {
    let (orders, sent) = match private.recv::<Order>() {
        Ok(Some(received)) => match received.message {
            Order::Enter(_) if received.descriptors_lost => {
                fail(&private, Failure::new(Layer::Mounts, Step::ReceiveOrders, libc::EMFILE))
            }
            Order::Enter(orders) => (orders, received.descriptors),
            Order::Run | Order::Wake { .. } => {
                fail(&private, Failure::new(Layer::Namespaces, Step::ReceiveOrders, libc::EPROTO))
            }
        },
        // The caller is gone, or gave this child up.
        _ => exit_now(1),
    };
    let entered = match (place, &orders.view) {
        (Place::Stage(template), Some(view)) => sandbox::enter(&orders, view, sent, template),
        (Place::Host { id, visible }, None) => sandbox::enter_without_namespaces(&orders, *id, visible),
        _ => Err(Failure::new(Layer::Namespaces, Step::ReceiveOrders, libc::EPROTO)),
    };
    // Before the report, so that the caller never finds the zygote's name on its child.
    show_name(orders.process_name.as_deref().unwrap_or(DEFAULT_PROCESS_NAME), title);
    match entered {
        Ok(layers) => report(&private, &Report::Entered { layers }, &[]),
        Err(failure) => fail(&private, failure),
    }
    if orders.parks {
        return ChildStart::Parks(Parking { private, title, cpu_seconds: orders.rlimits.cpu_seconds });
    }
    drop(orders);

    let Ok(Some(received)) = private.recv::<Order>() else { exit_now(1) };
    let Ok((Order::Run, [stdin, stdout, stderr, args])) = received.with() else { exit_now(1) };
    if descriptors::become_stdio(stdin, stdout, stderr).is_err() {
        exit_now(1);
    }
    // The private socket goes with its owner; after it only the standard streams and the args are open.
    ChildStart::Now { args }
}

/// In `comm` and in the command line.
pub(super) fn show_name(name: &str, title: Option<Title>) {
    set_comm(&CString::new(name).unwrap_or_default());
    if let Some(title) = title {
        title.set(name.as_bytes());
    }
}

/// A child's last words.
fn fail(private: &Channel, failure: Failure) -> ! {
    report(private, &Report::Failed(failure), &[]);
    exit_now(1)
}

/// A caller that is gone does not need the report.
fn report(private: &Channel, message: &Report, descriptors: &[BorrowedFd<'_>]) {
    let _ = private.send(message, descriptors);
}

/// A child never unwinds into the zygote's frames.
pub(super) struct ExitOnUnwind;

impl Drop for ExitOnUnwind {
    fn drop(&mut self) {
        exit_now(1)
    }
}
