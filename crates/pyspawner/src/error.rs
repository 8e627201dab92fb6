//! What can go wrong, as types. Nothing here is a bare string: a failure names its layer and its step, and
//! travels from the child to the caller as data.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::layer::Layer;
use crate::protocol::ProtocolError;

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

/// A sandbox layer that could not be applied. No user code has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{layer}: {step}: {}", io::Error::from_raw_os_error(*errno))]
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
            EACCES, EAGAIN, EEXIST, EMFILE, ENODEV, ENOENT, ENOMEM, ENOSPC, ENOSYS, ENOTDIR, EOPNOTSUPP,
            EPERM, ESRCH,
        };
        match (self.layer, self.step, self.errno) {
            (_, _, EMFILE) => "too many open files: raise RLIMIT_NOFILE (ulimit -n)",
            (_, _, ENOMEM) => "the kernel is out of memory",
            (Layer::Namespaces, Step::Clone, ENOSYS) => {
                "clone3 is missing or hidden: Linux 5.10 or later is needed, and Docker's default seccomp profile hides clone3 \
                 (run the container with --security-opt seccomp=unconfined or a profile that allows it, and --cap-add SYS_ADMIN)"
            }
            (Layer::Namespaces, Step::Clone, EPERM) => {
                "creating user namespaces is not allowed here: in Docker, the seccomp profile must allow clone3 and the container \
                 needs --cap-add SYS_ADMIN; on a host, see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone \
                 and kernel.apparmor_restrict_unprivileged_userns"
            }
            (Layer::Namespaces, Step::Clone, ENOSPC) => {
                "the limit of namespaces is reached: raise the sysctls user.max_user_namespaces, user.max_net_namespaces and their siblings"
            }
            (Layer::Namespaces, Step::Clone, EAGAIN) => {
                "the limit of processes is reached: see RLIMIT_NPROC (ulimit -u), the cgroup's pids.max and kernel.pid_max"
            }
            (_, Step::ChildLost, _) | (Layer::IdMap, _, ESRCH) => {
                "something killed the child while it was being set up"
            }
            (Layer::IdMap, _, EPERM) => {
                "mapping host ids needs root with CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN in the caller's user namespace"
            }
            (Layer::IdMap, Step::ChooseIdRange, _) => "every range of host ids is taken by a living child",
            (Layer::Network, Step::CreateVeth, EOPNOTSUPP) => "the kernel has no veth driver (CONFIG_VETH)",
            (Layer::Network, Step::DeleteStaleInterface, EEXIST) => {
                "an interface of this name exists and is not a veth device of this very name: choose another kernel_veth_name"
            }
            (Layer::Network, _, EPERM) => {
                "network needs CAP_NET_ADMIN in the caller (Docker: --cap-add NET_ADMIN)"
            }
            (Layer::Network, _, ENODEV) => "the interface vanished: does another child use the same names?",
            (Layer::Mounts, Step::UnshareMounts, EPERM) => {
                "mount namespaces need CAP_SYS_ADMIN (Docker: --cap-add SYS_ADMIN --security-opt apparmor=unconfined)"
            }
            (Layer::Mounts, Step::OpenChroot, ENOENT) => "chroot_dir does not exist",
            (
                Layer::Mounts,
                Step::CloneChroot | Step::StageChroot | Step::MoveMount | Step::PivotRoot,
                EPERM,
            ) => {
                "mounting is refused: CAP_SYS_ADMIN is missing, or an AppArmor or seccomp profile forbids it"
            }
            (Layer::Mounts, Step::OpenChroot, ENOTDIR) => {
                "chroot_dir must be a directory and not a symbolic link"
            }
            (Layer::Seccomp, Step::InstallFilter, EACCES) => {
                "after setuid or drop_capabilities a filter needs no_new_privs: name it too in skip_sandbox_except"
            }
            (Layer::Session, Step::JoinKeyring, EPERM) => {
                "a seccomp profile forbids keyctl, as Docker's default one does"
            }
            _ => "",
        }
    }
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

/// Why the zygote did not start. No process is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The executable could not be run.
    #[error("cannot run the executable {executable:?}: {source}")]
    Execute {
        /// The executable as it was given.
        executable: std::path::PathBuf,
        /// What execve(2) or fork(2) said.
        source: io::Error,
    },
    /// The interpreter ended before it spoke to us: it is no Python, or has no pyspawner.
    #[error(
        "{executable:?} ended before the zygote was up ({status}); is it a Python, and is pyspawner installed in it?{}",
        indented(stderr)
    )]
    Silent {
        /// The executable as it was given.
        executable: std::path::PathBuf,
        /// How it ended.
        status: Status,
        /// What it wrote on its standard error.
        stderr: String,
    },
    /// The zygote runs another version of pyspawner.
    #[error(
        "{executable:?} has another version of pyspawner than the caller: install the same version in both"
    )]
    Version {
        /// The executable as it was given.
        executable: std::path::PathBuf,
    },
    /// An import failed, or `child_main` is not what it should be.
    #[error("{summary}{}", indented(traceback))]
    Import {
        /// One line for people.
        summary: String,
        /// The zygote's own traceback.
        traceback: String,
    },
    /// The zygote died while it imported `module`.
    #[error("the zygote died while it imported {module:?} ({status})")]
    DiedImporting {
        /// The module whose import was under way; empty before the first.
        module: String,
        /// How it ended.
        status: Status,
    },
}

fn indented(text: &str) -> String {
    text.trim_end().lines().fold(String::new(), |all, line| all + "\n    " + line)
}

/// How a process ended, as wait(2) encodes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub i32);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 & 0x7f {
            0 => write!(f, "exit code {}", (self.0 >> 8) & 0xff),
            signal => write!(f, "killed by signal {signal}"),
        }
    }
}

/// Everything that [`crate::client`] can answer with instead of a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration makes no sense; nothing was made.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The zygote did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The zygote has died.
    #[error("the zygote (pid {pid}) has died ({}): make a new Client", status.map_or_else(|| "somebody else reaped it".to_owned(), |status| status.to_string()))]
    ZygoteDied {
        /// The zygote's pid.
        pid: i32,
        /// How it ended, when we were the ones to reap it.
        status: Option<Status>,
    },
    /// A layer could not be applied.
    #[error(transparent)]
    Sandbox(#[from] Failure),
    /// The Client is closed.
    #[error("the Client is closed")]
    Closed,
    /// The Client belongs to another process.
    #[error(
        "this Client was made by process {owner} and cannot be used in process {here}: make a Client after the fork"
    )]
    Forked {
        /// The process that made it.
        owner: u32,
        /// The process that used it.
        here: u32,
    },
    /// The caller's own system calls failed, for example for want of descriptors.
    #[error("{doing}: {source}")]
    Io {
        /// What the caller was doing.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The other end does not speak our protocol.
    #[error("protocol error: {0}")]
    Protocol(#[from] ProtocolError),
    /// A signal handler of the caller raised: the operation was given up and cleaned up.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { doing, source: errno.into() }
    }
}
