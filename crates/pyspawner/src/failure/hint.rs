//! What a person can do about a layer that could not be applied.

use libc::{
    E2BIG, EACCES, EAGAIN, EBUSY, EEXIST, EINVAL, ELOOP, EMFILE, ENODEV, ENOENT, ENOMEM, ENOSPC, ENOSYS,
    ENOTDIR, EOPNOTSUPP, EPERM, EROFS, ESRCH, ESTALE,
};

use crate::layer::Layer;

use super::{Failure, Step};

/// All that Docker's defaults forbid: half of it only leads to the next error.
macro_rules! docker {
    () => {
        "In Docker: --cap-add SYS_ADMIN --security-opt apparmor=unconfined --security-opt seccomp=unconfined, or a seccomp profile that \
         allows clone3, keyctl, pivot_root and the mount calls"
    };
}

const KILLED: &str = "something killed the child while it was being set up";

const TOO_MANY_NAMESPACES: &str = "the limit of namespaces is reached: raise the sysctls user.max_user_namespaces, user.max_net_namespaces and their siblings";

/// Empty where we know nothing better than the errno.
pub(super) fn of(failure: Failure) -> &'static str {
    let (step, errno) = (failure.step, failure.errno);
    match (failure.layer, step, errno) {
        (_, _, EMFILE) => "too many open files: raise RLIMIT_NOFILE (ulimit -n)",
        (_, _, ENOMEM) => "the kernel is out of memory",
        (_, Step::ChildLost, _) => KILLED,
        (Layer::Namespaces, ..) => namespaces(step, errno),
        (Layer::Cgroup, ..) => cgroup(step, errno),
        (Layer::IdMap, ..) => id_map(step, errno),
        (Layer::Network, ..) => network(step, errno),
        (Layer::Mounts, ..) => mounts(step, errno),
        (Layer::Session, Step::JoinKeyring, EPERM) => {
            concat!("a seccomp profile forbids keyctl. ", docker!())
        }
        (Layer::Landlock, Step::RestrictSelf, EPERM) => {
            "Landlock needs no_new_privs: name it too in skip_sandbox_except"
        }
        (Layer::Landlock, Step::RestrictSelf, EOPNOTSUPP | ENOSYS) => {
            "without namespaces Landlock is the lock, and this kernel's is too old or off: Linux 6.2 or later is needed, with landlock \
             in its list of security modules (lsm=)"
        }
        (Layer::Setuid, _, EINVAL) => {
            "without namespaces a child needs a host id of its own above 65,535, and this container maps none"
        }
        (Layer::Setuid, _, EPERM) => {
            "without namespaces the caller needs CAP_SETUID and CAP_SETGID, which a container has by default as root"
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

/// The clone.
fn namespaces(step: Step, errno: i32) -> &'static str {
    match (step, errno) {
        (Step::Clone, ENOSYS) => concat!(
            "clone3 is missing or hidden: Linux 5.10 or later is needed, and Docker's default seccomp profile hides it. ",
            docker!()
        ),
        (Step::Clone, EPERM) => concat!(
            "user namespaces are not allowed here: a seccomp profile forbids them, or one of the sysctls user.max_user_namespaces, ",
            "kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns. ",
            docker!()
        ),
        (Step::Clone, EINVAL) => {
            "the kernel lacks a kind of namespace (CONFIG_USER_NS, CONFIG_PID_NS, CONFIG_NET_NS, CONFIG_IPC_NS, CONFIG_UTS_NS)"
        }
        (Step::Clone, ENOSPC) => TOO_MANY_NAMESPACES,
        (Step::Clone, EAGAIN) => {
            "the limit of processes is reached: see RLIMIT_NPROC (ulimit -u), the cgroup's pids.max and kernel.pid_max"
        }
        (Step::CountThreads, EAGAIN) => {
            "a fork hook of an imported module (os.register_at_fork) has started a thread in the zygote, which cannot be cloned safely now"
        }
        _ => "",
    }
}

/// How to get a part of the tree of cgroups.
macro_rules! delegate {
    () => {
        "systemd: Delegate=yes and DelegateSubgroup=main in the unit (before systemd 254 the program moves itself into a subgroup); Docker and \
         Kubernetes: a writable /sys/fs/cgroup, and the program in a subgroup of it. See docs/limits.md"
    };
}

/// Cgroups.
fn cgroup(step: Step, errno: i32) -> &'static str {
    match (step, errno) {
        (Step::FindCgroup, ENODEV) => {
            "the host has no cgroup v2 with the controllers memory and pids at /sys/fs/cgroup: boot it with \
             systemd.unified_cgroup_hierarchy=1, or do without: Limits(cgroup=\"if_delegated\")"
        }
        (Step::FindCgroup, EROFS) => concat!("/sys/fs/cgroup is mounted read-only here. ", delegate!()),
        (Step::FindCgroup, EBUSY) => concat!(
            "the caller's cgroup could be divided if the caller were not in it itself: move it into a subgroup. ",
            delegate!()
        ),
        (Step::FindCgroup, _) => {
            concat!("no part of the tree of cgroups is delegated to the caller. ", delegate!())
        }
        (Step::MakeCgroup, EAGAIN) => "the host's limit of cgroups is reached: see cgroup.max.descendants",
        (Step::EnterCgroup, EAGAIN) => {
            "the limit of processes is reached: the cgroup's pids.max, or that of one above it"
        }
        (Step::LimitCgroup, ENOENT) => {
            "the controller cpu is not handed out in the caller's part of the tree of cgroups, and `cpus` needs it"
        }
        (Step::EnterCgroup | Step::MakeCgroup | Step::LimitCgroup, _) => {
            "somebody else changes the caller's part of the tree of cgroups: make a new Client"
        }
        _ => "",
    }
}

/// Host ids.
fn id_map(step: Step, errno: i32) -> &'static str {
    match (step, errno) {
        (_, ESRCH) => KILLED,
        (Step::ChooseIdRange, _) => "every range of host ids is taken by a living child",
        (Step::UnshareUser, _) => concat!(
            "an ordinary user may not make user namespaces here: see the sysctls user.max_user_namespaces, ",
            "kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns, or run as root. ",
            docker!()
        ),
        (Step::CheckGroups, EACCES) => {
            "the caller's supplementary groups cannot be dropped without root, and would let children read or write files that strangers \
             may not: start the program without them (setpriv --clear-groups), or run it as root"
        }
        (_, EPERM) => {
            "mapping host ids needs root with CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN in the caller's user namespace, and there all \
             ids must be mapped: where it is a container's own, see /etc/subuid and /etc/subgid"
        }
        _ => "",
    }
}

/// The veth pair.
fn network(step: Step, errno: i32) -> &'static str {
    match (step, errno) {
        (Step::CreateVeth, EOPNOTSUPP) => "the kernel has no veth driver (CONFIG_VETH)",
        (Step::DeleteStaleInterface, EEXIST) => {
            "an interface of this name exists and is not a veth device of this very name: choose another kernel_veth_name"
        }
        (Step::MakeRouter, EPERM) => {
            "a managed network needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN. In Docker: --cap-add SYS_ADMIN --cap-add NET_ADMIN"
        }
        (Step::MakeRouter, EROFS) => {
            "/proc/sys is read-only here. In Docker: --security-opt systempaths=unconfined"
        }
        (_, EPERM) => "network needs CAP_NET_ADMIN in the caller. In Docker: --cap-add NET_ADMIN",
        (_, ENODEV) => "the interface vanished: does another child use the same names?",
        _ => "",
    }
}

/// The filesystem.
fn mounts(step: Step, errno: i32) -> &'static str {
    match (step, errno) {
        (Step::UnshareMounts, ENOSPC) => TOO_MANY_NAMESPACES,
        (Step::OpenChroot, ENOENT) => "chroot_dir does not exist",
        (Step::OpenChroot, ENOTDIR | ELOOP) => {
            "chroot_dir must be a directory and not a symbolic link: pass os.path.realpath() of it"
        }
        (Step::OpenSource, ENOENT) => "the source of a Bind or Overlay does not exist",
        (Step::OpenSource, ELOOP) => {
            "the source of a Bind or Overlay is a symbolic link: pass os.path.realpath() of it"
        }
        (Step::OpenSource, ENOTDIR) => {
            "the lower or upper of an Overlay must be a directory and not a symbolic link"
        }
        (Step::LockProgram, _) => {
            "without root, the interpreter must run from a read-only mount, which could not be made when the Client was: make a new Client"
        }
        (Step::FindSource, ESTALE) => {
            "without root, the source of a mount must not lie on a filesystem that was mounted since the Client was made"
        }
        (Step::MapOwners | Step::MakeUpper, EPERM) => {
            "only root of the host, and not of a container's own user namespace, may map the owners of files, as a writable Bind and an \
             Overlay need"
        }
        (Step::MapOwners, EINVAL) => {
            "its filesystem cannot map the owners of files, as a writable Bind and an Overlay need; ext4, xfs, btrfs and tmpfs can, \
             overlayfs and NFS cannot. In Docker: use a volume"
        }
        (Step::MapOwners | Step::SetMountAttributes, ENOSYS) => {
            "a writable Bind and an Overlay need Linux 5.12 or later"
        }
        (Step::FindTarget, ENOTDIR) => "a part of a mount's target is no directory",
        (Step::MakeTarget, ENOENT) => {
            "a mount's target is missing, and cannot be made where it is to be: in a /proc, for example"
        }
        (Step::MatchTarget, _) => {
            "a mount's source and target are not of one kind: a directory goes on a directory, a file on a file"
        }
        (Step::FindTarget, ELOOP) | (Step::MakeTarget, EEXIST) => {
            "a part of a mount's target is a symbolic link that leads nowhere"
        }
        (Step::LockUpper, EBUSY) => {
            "an upper serves one child at a time, and a living one has it: wait for its end, or give each its own"
        }
        (Step::MakeUpper, ELOOP) => {
            "the upper and the lower of an Overlay must not lie in each other: the original would change"
        }
        (Step::MakeUpper | Step::OpenUpper, ENOTDIR | ELOOP) => {
            "what an earlier child, or you, have left as changes or work in the upper of an Overlay is no directory"
        }
        (Step::MirrorDirectory, E2BIG) => {
            "a mount's target is missing, and its parent has too many entries to make room in it: make the target beforehand"
        }
        (Step::MountProc, EPERM) => concat!(
            "the kernel refuses a new /proc: this container's own is masked, or a profile forbids it. In Docker: --security-opt \
             systempaths=unconfined; in Kubernetes: procMount: Unmasked. Or do without: SandboxConfig(proc=False). ",
            docker!()
        ),
        (Step::MountOverlay, EINVAL | EPERM) => {
            "an Overlay needs Linux 5.19 or later, and an upper on a filesystem with user attributes"
        }
        (Step::WorkingDir, ENOENT | ENOTDIR | EACCES | ELOOP) => {
            "working_dir must be a directory in the child's root that its user may enter"
        }
        (_, EPERM)
        | (Step::MakePrivate | Step::MountTmpfs | Step::MoveMount | Step::SetMountAttributes, EACCES) => {
            concat!(
                "mounting is refused: CAP_SYS_ADMIN is missing, or an AppArmor or seccomp profile forbids it. ",
                docker!()
            )
        }
        _ => "",
    }
}
