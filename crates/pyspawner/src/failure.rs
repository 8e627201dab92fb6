//! A layer that could not be applied: which, at what step, with which errno, and what to do about it. It travels from the child to the
//! caller as data.

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
    CountThreads => "counting the zygote's threads",
    ChildLost => "the child ended before its sandbox was complete",
    ZygoteRefused => "the zygote could not take the request (no file descriptor left?)",
    DropGroups => "setgroups() to drop the supplementary groups",
    ChooseIdRange => "choosing a free range of host ids",
    WriteUidMap => "write /proc/PID/uid_map",
    DenySetgroups => "write /proc/PID/setgroups",
    WriteGidMap => "write /proc/PID/gid_map",
    BecomeRoot => "setresuid(0) inside the new user namespace",
    RegisterWithWatchdog => "registering the child with the watchdog",
    OpenNetlink => "open a netlink socket",
    FindStaleInterface => "look for a stale interface of the same name",
    DeleteStaleInterface => "delete the stale interface of the same name",
    CreateVeth => "create the veth pair",
    FindInterface => "find the network interface",
    AddAddress => "add the IPv4 address",
    LinkUp => "bring the interface up",
    AddRoute => "add the default route",
    UnshareMounts => "unshare() the zygote's mount namespace",
    MakePrivate => "make the mounts private",
    OpenTree => "open_tree() of a path that the interpreter needs",
    SetMountAttributes => "mount_setattr() to read-only, nosuid, nodev",
    MountTmpfs => "mount the tmpfs that hides an unreadable directory",
    CreateMountPoint => "create a mount point",
    MoveMount => "move_mount() of a bind into place",
    ChangeDirectory => "change the working directory",
    OpenChroot => "open chroot_dir",
    CloneChroot => "open_tree() of chroot_dir",
    StageChroot => "mounting chroot_dir where the clone finds it",
    PivotRoot => "pivot_root() into chroot_dir",
    UnmountOldRoot => "umount2() of the old root",
    CloseDescriptors => "close_range() of every inherited descriptor",
    SetSession => "setsid()",
    JoinKeyring => "keyctl(KEYCTL_JOIN_SESSION_KEYRING)",
    LimitCore => "setrlimit(RLIMIT_CORE)",
    LimitSignals => "setrlimit(RLIMIT_SIGPENDING)",
    SetSecurebits => "prctl(PR_SET_SECUREBITS)",
    DropBoundingSet => "prctl(PR_CAPBSET_DROP)",
    ClearAmbientSet => "prctl(PR_CAP_AMBIENT_CLEAR_ALL)",
    SetCapabilities => "capset() to the empty sets",
    SetUid => "setresgid(1000) and setresuid(1000)",
    SetNoNewPrivs => "prctl(PR_SET_NO_NEW_PRIVS)",
    HandleSigsys => "sigaction(SIGSYS)",
    InstallFilter => "seccomp(SECCOMP_SET_MODE_FILTER)",
    ReceiveOrders => "receiving the sandbox's orders",
}

/// All that Docker's defaults forbid: half of it only leads to the next error.
macro_rules! docker {
    () => {
        "In Docker: --cap-add SYS_ADMIN --security-opt apparmor=unconfined --security-opt seccomp=unconfined, or a seccomp profile that \
         allows clone3, keyctl, pivot_root and the mount calls"
    };
}

/// A sandbox layer that could not be applied. No user code has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{layer}: {step}: {}", describe(*errno))]
pub struct Failure {
    /// The layer that could not be applied.
    pub layer: Layer,
    /// What it was doing.
    pub step: Step,
    /// The kernel's answer, as in errno(3).
    pub errno: i32,
}

impl Failure {
    /// A failure of `step` in `layer` with a known errno.
    #[must_use]
    pub const fn new(layer: Layer, step: Step, errno: i32) -> Self {
        Self { layer, step, errno }
    }

    /// Whether the kernel's netlink refused, which users may want to tell from the rest.
    #[must_use]
    pub const fn is_netlink(&self) -> bool {
        matches!(self.layer, Layer::Network)
    }

    /// What the reader can do about it; empty when we know nothing better than the errno.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        use libc::{
            EACCES, EAGAIN, EEXIST, EINVAL, EMFILE, ENODEV, ENOENT, ENOMEM, ENOSPC, ENOSYS, ENOTDIR,
            EOPNOTSUPP, EPERM, ESRCH,
        };
        match (self.layer, self.step, self.errno) {
            (_, _, EMFILE) => "too many open files: raise RLIMIT_NOFILE (ulimit -n)",
            (_, _, ENOMEM) => "the kernel is out of memory",
            (_, Step::ChildLost, _) | (Layer::IdMap, _, ESRCH) => {
                "something killed the child while it was being set up"
            }
            (Layer::Namespaces, Step::Clone, ENOSYS) => concat!(
                "clone3 is missing or hidden: Linux 5.10 or later is needed, and Docker's default seccomp profile hides it. ",
                docker!()
            ),
            (Layer::Namespaces, Step::Clone, EPERM) => concat!(
                "user namespaces are not allowed here: a seccomp profile forbids them, or one of the sysctls user.max_user_namespaces, ",
                "kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns. ",
                docker!()
            ),
            (Layer::Namespaces, Step::Clone, EINVAL) => {
                "the kernel lacks a kind of namespace (CONFIG_USER_NS, CONFIG_PID_NS, CONFIG_NET_NS, CONFIG_IPC_NS, CONFIG_UTS_NS)"
            }
            (Layer::Namespaces, Step::Clone, ENOSPC) | (Layer::Mounts, Step::UnshareMounts, ENOSPC) => {
                "the limit of namespaces is reached: raise the sysctls user.max_user_namespaces, user.max_net_namespaces and their siblings"
            }
            (Layer::Namespaces, Step::Clone, EAGAIN) => {
                "the limit of processes is reached: see RLIMIT_NPROC (ulimit -u), the cgroup's pids.max and kernel.pid_max"
            }
            (Layer::Namespaces, Step::CountThreads, EAGAIN) => {
                "a fork hook of an imported module (os.register_at_fork) has started a thread in the zygote, which cannot be cloned safely now"
            }
            (Layer::IdMap, Step::ChooseIdRange, _) => "every range of host ids is taken by a living child",
            (Layer::IdMap, _, EPERM) => {
                "mapping host ids needs root with CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN in the caller's user namespace, and there all \
                 ids must be mapped: where it is a container's own, see /etc/subuid and /etc/subgid"
            }
            (Layer::Network, Step::CreateVeth, EOPNOTSUPP) => "the kernel has no veth driver (CONFIG_VETH)",
            (Layer::Network, Step::DeleteStaleInterface, EEXIST) => {
                "an interface of this name exists and is not a veth device of this very name: choose another kernel_veth_name"
            }
            (Layer::Network, _, EPERM) => {
                "network needs CAP_NET_ADMIN in the caller. In Docker: --cap-add NET_ADMIN"
            }
            (Layer::Network, _, ENODEV) => "the interface vanished: does another child use the same names?",
            (Layer::Mounts, Step::OpenChroot, ENOENT) => "chroot_dir does not exist",
            (Layer::Mounts, Step::OpenChroot, ENOTDIR) => {
                "chroot_dir must be a directory and not a symbolic link"
            }
            (Layer::Mounts, _, EPERM) => concat!(
                "mounting is refused: CAP_SYS_ADMIN is missing, or an AppArmor or seccomp profile forbids it. ",
                docker!()
            ),
            (Layer::Session, Step::JoinKeyring, EPERM) => {
                concat!("a seccomp profile forbids keyctl. ", docker!())
            }
            (Layer::Seccomp, Step::InstallFilter, EACCES) => {
                "after setuid or drop_capabilities a filter needs no_new_privs: name it too in skip_sandbox_except"
            }
            (Layer::Seccomp, Step::InstallFilter, EPERM) => {
                "a seccomp profile forbids seccomp() itself: allow it"
            }
            (Layer::Seccomp, Step::InstallFilter, EINVAL | ENOSYS) => {
                "the kernel has no system-call filters (CONFIG_SECCOMP_FILTER)"
            }
            _ => "",
        }
    }
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
