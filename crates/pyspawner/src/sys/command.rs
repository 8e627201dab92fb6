//! Starting another program with exactly one inherited descriptor.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::write;
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use rustix::process::{getegid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags,
    configure_capability_in_ambient_set, move_into_link_name_space, move_into_thread_name_spaces,
    set_capabilities, unshare_unsafe,
};

use super::descriptors;

/// Signals that a caller has ignored or blocked would stay so across exec, in the zygote and in every child: `subprocess` in a child
/// could not tell how a program ended, for example, because its caller ignores SIGCHLD.
fn reset_signals() {
    // SAFETY: sigemptyset initialises the set before it is read. SIGKILL, SIGSTOP and those of glibc's own are refused, which is fine.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// What it takes to run a program from a read-only mount. `/proc/self/exe` leads back to the mount that a program was executed from, whatever
/// its process and the clones of it see of the filesystem later: through a writable one, children could change the interpreter's mode and
/// times, and those of the caller's own user its content.
struct ProgramLock {
    program: CString,
    /// For a caller that is no root: its own ids, in a user namespace in which it may mount.
    maps: Option<[(&'static CStr, String); 3]>,
}

/// What comes back from between fork and exec where a user namespace was made and may have no ids: an errno that no call there has.
pub(crate) const NO_IDS: i32 = libc::EUSERS;

impl ProgramLock {
    /// `None` for a program that is not there: to run it will say so.
    fn new(program: &Path) -> Option<Self> {
        let program = CString::new(std::fs::canonicalize(program).ok()?.into_os_string().into_vec()).ok()?;
        let (uid, gid) = (geteuid(), getegid());
        let map = |id: u32| format!("{id} {id} 1\n");
        let maps = [
            (c"/proc/self/setgroups", "deny".to_owned()),
            (c"/proc/self/uid_map", map(uid.as_raw())),
            (c"/proc/self/gid_map", map(gid.as_raw())),
        ];
        Some(Self { program, maps: (!uid.is_root()).then_some(maps) })
    }

    /// Where namespaces are not allowed, there will be no children either, or only such as have no namespaces and a uid of their own.
    fn apply(&self) -> io::Result<()> {
        let user = if self.maps.is_some() { UnshareFlags::NEWUSER } else { UnshareFlags::empty() };
        // SAFETY: only CLONE_FILES is the danger here, and it is not asked for.
        if unsafe { unshare_unsafe(user | UnshareFlags::NEWNS) }.is_err() {
            return Ok(());
        }
        for (path, text) in self.maps.iter().flatten() {
            let written = openat(CWD, *path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|file| write(&file, text.as_bytes()));
            if written.is_err() {
                return Err(io::Error::from_raw_os_error(NO_IDS));
            }
        }
        // Some hosts allow a namespace and no mount in it. The zygote will find that out too, and make no children with namespaces. For an
        // ordinary user it checks this very lock; children of root are other users, whom permissions keep from the program.
        let _ = self.lock();
        Ok(())
    }

    fn lock(&self) -> io::Result<()> {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount_bind(&self.program, &self.program)?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        Ok(mount_remount(&self.program, flags, c"")?)
    }
}

/// Lets `command` run in its own session (a Ctrl-C in the terminal does not reach it) with `socket` as the only descriptor
/// above 2, and with a read-only mount of `program` in its own mount namespace.
pub(crate) fn isolate(command: &mut Command, socket: BorrowedFd<'_>, program: &Path) {
    let number = socket.as_raw_fd();
    let lock = ProgramLock::new(program);
    // SAFETY: runs between fork and exec, where only system calls are allowed. It makes no others, and allocates only on kernels
    // before 5.11, where glibc's fork has left malloc usable. The descriptor is open until the caller drops it, after spawn.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            reset_signals();
            if let Some(lock) = &lock {
                lock.apply()?;
            }
            descriptors::close_on_exec_above_stdio(BorrowedFd::borrow_raw(number).as_fd())?;
            Ok(())
        });
    }
}

/// Lets `command` run in the user and network namespaces of a process, with the capability to set up that network and no other. Who made a
/// user namespace may enter it so, whoever he is.
pub(crate) fn run_in_network_of(command: &mut Command, process: BorrowedFd<'_>) {
    let number = process.as_raw_fd();
    let only = CapabilitySet::NET_ADMIN;
    // SAFETY: runs between fork and exec, and makes nothing but system calls. The descriptor is open until the caller drops it, after
    // spawn.
    unsafe {
        command.pre_exec(move || {
            move_into_thread_name_spaces(
                BorrowedFd::borrow_raw(number),
                ThreadNameSpaceType::USER | ThreadNameSpaceType::NETWORK,
            )?;
            // Whoever the user is in there, it is not root, and would lose them by exec.
            set_capabilities(None, CapabilitySets { effective: only, permitted: only, inheritable: only })?;
            configure_capability_in_ambient_set(only, true)?;
            Ok(())
        });
    }
}

/// Lets `command` run on its own: in its own session, with no signal blocked or ignored.
pub(crate) fn detach(command: &mut Command) {
    // SAFETY: runs between fork and exec, and makes nothing but system calls.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            reset_signals();
            Ok(())
        });
    }
}

/// Has a command run in another network namespace.
pub(crate) fn run_in_network_namespace(command: &mut Command, namespace: BorrowedFd<'_>) {
    let namespace = namespace.as_raw_fd();
    // SAFETY: setns(2) is async-signal-safe, and the descriptor is open for as long as the caller borrows it: until the command has been
    // spawned.
    unsafe {
        command.pre_exec(move || {
            let namespace = BorrowedFd::borrow_raw(namespace);
            Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
        });
    }
}
