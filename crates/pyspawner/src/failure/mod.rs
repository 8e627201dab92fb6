//! A layer that could not be applied: which, at what step, with which errno, and what to do about it. It travels from the child to the
//! caller as data.

mod hint;

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::layer::Layer;

/// Declares [`Step`]: one variant a system call that can fail, with the words that tell a person what it was doing.
macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)+) => {
        /// The system call, or group of calls, that failed within a layer.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Step {
            $(#[doc = concat!("`", $text, "`")] $name,)+
        }

        impl fmt::Display for Step {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)+ })
            }
        }
    };
}

steps! {
    Clone => "clone3() of the zygote into new namespaces",
    FindCgroup => "find a cgroup v2 that the caller may divide",
    MakeCgroup => "make a cgroup for the child",
    LimitCgroup => "write the limits of the child's cgroup",
    EnterCgroup => "clone3() of the zygote into the child's cgroup",
    CountThreads => "counting the zygote's threads",
    ChildLost => "the child ended before its sandbox was complete",
    ZygoteRefused => "the zygote could not take the request (no file descriptor left?)",
    DropGroups => "setgroups() to drop the supplementary groups",
    ChooseIdRange => "choosing a free range of host ids",
    WriteUidMap => "write /proc/PID/uid_map",
    ReadUidMap => "read /proc/self/uid_map",
    DenySetgroups => "write /proc/PID/setgroups",
    WriteGidMap => "write /proc/PID/gid_map",
    BecomeRoot => "setresuid(0) inside the new user namespace",
    RegisterWithWatchdog => "registering the child with the watchdog",
    OpenNetlink => "open a netlink socket",
    FindStaleInterface => "look for a stale interface of the same name",
    DeleteStaleInterface => "delete the stale interface of the same name",
    CreateVeth => "create the veth pair",
    FindInterface => "find the network interface",
    AddAddress => "add the address",
    LinkUp => "bring the interface up",
    AddRoute => "add the default route",
    MakeRouter => "make a network namespace that forwards",
    ListRoutes => "list the host's routes",
    WriteFile => "write a file of the child's own",
    UnshareUser => "unshare() the user namespace of a zygote that is no root",
    CheckGroups => "check what the caller's supplementary groups open",
    LockProgram => "check that the interpreter runs from a read-only mount",
    UnshareMounts => "unshare() the zygote's mount namespace",
    MakePrivate => "make the mounts private",
    RemoveKernelsOwn => "look for mounts of /proc, /sys and their like elsewhere",
    OpenTree => "open_tree() of a path that the interpreter needs",
    SetMountAttributes => "mount_setattr() to read-only, nosuid, nodev",
    MountTmpfs => "mount a tmpfs",
    CreateMountPoint => "create a mount point",
    MoveMount => "move_mount() of a bind into place",
    ChangeDirectory => "change the working directory",
    OpenChroot => "open chroot_dir",
    CloneChroot => "open_tree() of chroot_dir",
    OpenSource => "open the source of a mount",
    FindSource => "find the source of a mount once more",
    CloneSource => "open_tree() of the source of a mount",
    LockUpper => "lock the upper of an Overlay",
    MakeUpper => "make the directories that keep an Overlay's changes",
    MakeUserNamespace => "make a user namespace for the owners of a writable mount",
    MapOwners => "mount_setattr() to map the owners of a writable mount",
    StageTree => "mounting a tree where the clone finds it",
    OpenDevice => "open a device of the host's",
    MakeDevice => "mknod() of a device",
    CopyTree => "open_tree() of what the child is to have",
    FindTarget => "find the target of a mount in the child's root",
    MatchTarget => "mount something on a target of another kind",
    MakeTarget => "make the target of a mount in the child's root",
    MirrorDirectory => "make room for a mount in a read-only directory",
    MountProc => "mount the child's own /proc",
    MaskProc => "cover a file in the child's /proc",
    MountDevpts => "mount the child's own pseudoterminals",
    OpenUpper => "open the directories that keep an Overlay's changes",
    MountOverlay => "mount an overlay",
    KeepInPrivate => "show what the interpreter needs in a private directory",
    WorkingDir => "chdir() to working_dir",
    PivotRoot => "pivot_root()",
    UnmountOldRoot => "umount2() of the old root",
    CloseDescriptors => "close_range() of every inherited descriptor",
    SetSession => "setsid()",
    JoinKeyring => "keyctl(KEYCTL_JOIN_SESSION_KEYRING)",
    LimitCore => "setrlimit(RLIMIT_CORE)",
    LimitDescriptors => "setrlimit(RLIMIT_NOFILE)",
    LimitSignals => "setrlimit(RLIMIT_SIGPENDING)",
    SetRlimit => "setrlimit()",
    SetNiceness => "nice()",
    RankForOom => "write /proc/PID/oom_score_adj",
    SetSecurebits => "prctl(PR_SET_SECUREBITS)",
    DropBoundingSet => "prctl(PR_CAPBSET_DROP)",
    ClearAmbientSet => "prctl(PR_CAP_AMBIENT_CLEAR_ALL)",
    SetCapabilities => "capset() to the empty sets",
    SetUid => "setresgid(1000) and setresuid(1000)",
    SetNoNewPrivs => "prctl(PR_SET_NO_NEW_PRIVS)",
    JoinMountNamespace => "setns() to the mount namespace in which the zygote began",
    SetGroups => "setgroups() to no groups",
    OpenRule => "open a path for a Landlock rule",
    RestrictSelf => "landlock_restrict_self(), or a call before it",
    HandleSigsys => "sigaction(SIGSYS)",
    InstallFilter => "seccomp(SECCOMP_SET_MODE_FILTER)",
    ReceiveOrders => "receiving the sandbox's orders",
}

/// A sandbox layer that could not be applied. No user code has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{layer}: {}{step}: {}", which(*mount), describe(*errno))]
pub struct Failure {
    /// The layer that could not be applied.
    pub layer: Layer,
    /// What it was doing.
    pub step: Step,
    /// The kernel's answer, as in errno(3).
    pub errno: i32,
    /// Of which of `mounts`, by its place in the tuple.
    pub mount: Option<u8>,
}

impl Failure {
    /// A failure of `step` in `layer` with a known errno.
    #[must_use]
    pub const fn new(layer: Layer, step: Step, errno: i32) -> Self {
        Self { layer, step, errno, mount: None }
    }

    /// The same, of one of `mounts`.
    pub(crate) fn of_mount(self, index: usize) -> Self {
        Self { mount: u8::try_from(index).ok(), ..self }
    }

    /// Whether the kernel's netlink refused, which users may want to tell from the rest.
    #[must_use]
    pub const fn is_netlink(&self) -> bool {
        matches!(self.layer, Layer::Network)
    }

    /// What the reader can do about it; empty when we know nothing better than the errno.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        hint::of(*self)
    }
}

fn which(mount: Option<u8>) -> String {
    mount.map_or_else(String::new, |index| format!("mounts[{index}]: "))
}

/// What errno(3) means, in words.
fn describe(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    text.rsplit_once(" (os error").map_or(text.clone(), |(words, _)| words.to_owned())
}

/// Turns a refused system call into a [`Failure`] with `?`.
pub(crate) trait FailAt<T> {
    /// Names the layer and the step of a refused system call.
    fn fail_at(self, layer: Layer, step: Step) -> Result<T, Failure>;
}

impl<T> FailAt<T> for rustix::io::Result<T> {
    fn fail_at(self, layer: Layer, step: Step) -> Result<T, Failure> {
        self.map_err(|errno| Failure::new(layer, step, errno.raw_os_error()))
    }
}

impl<T> FailAt<T> for io::Result<T> {
    fn fail_at(self, layer: Layer, step: Step) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(layer, step, error.raw_os_error().unwrap_or(libc::EIO)))
    }
}
