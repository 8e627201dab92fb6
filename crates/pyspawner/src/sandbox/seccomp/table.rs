//! What each system call may do. The only file, beside `filter.rs`' architecture, that knows `x86_64` from aarch64.
//!
//! A call in none of these lists, and every call newer than them, answers `ENOSYS`: programs then fall back, as they do on an older
//! kernel.

/// The answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Goes through.
    Allow,
    /// Answers this errno.
    Errno(i32),
    /// Is not made, and ends the process with SIGSYS; standard error names the call. A hostile process can rewrite the handler, and so
    /// live on; the call is still not made.
    Trap,
    /// Depends on the arguments: see [`Check`].
    Check(Check),
}

/// A rule that looks at arguments. Only the low 32 bits count where the kernel reads an `int`: high bits hide nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// `clone`: no new namespaces.
    CloneFlags,
    /// `socket`: unix, or internet streams and datagrams.
    SocketFamily,
    /// `socketpair`: unix.
    SocketPairFamily,
    /// `fcntl`: nothing that tells of, or holds up, what others do with a file.
    FcntlCommand,
    /// `ioctl`: nothing that types into a terminal or changes its line discipline.
    IoctlRequest,
    /// `prctl`: an allow-list of options.
    PrctlOption,
    /// `personality`: ask, or set the plain one.
    Personality,
    /// `mknod` and its like: no device nodes, and no set-user-ID or set-group-ID bit; the mode is this argument.
    NodeMode(u32),
    /// `chmod` and its like: no set-user-ID or set-group-ID bit. On the host a file in a writable directory belongs to the caller, who may be
    /// root. The mode is this argument.
    FileMode(u32),
    /// `open` and its like: the same, of a file that is made. The flags are this argument, the mode is the next. `openat2`, whose mode lies
    /// in memory, is not there.
    OpenMode(u32),
    /// `mincore`: less than 4 GiB. It cannot be interrupted, not even by SIGKILL, and walks terabytes for seconds.
    MincoreLength,
    /// `setrlimit`: the limit of core dumps stays, see `session.rs`; setting it seems to work. The resource is argument 0.
    SetrlimitResource,
    /// `prlimit64`: likewise; the resource is argument 1, and without a new limit it only asks.
    PrlimitResource,
    /// `rt_sigaction`: the handler of SIGSYS is ours. Setting it seems to work and does nothing.
    Sigaction,
    /// Signals with details of the sender's choice: not SIGSYS, which could look as if the filter had sent it. The signal is this argument.
    QueuedSignal(u32),
}

/// A system call by number and name.
pub type Call = (u32, &'static str);

macro_rules! calls {
    ($($call:ident)*) => {{
        let calls: &[Call] = &[$((number(libc::$call), &stringify!($call)["SYS_".len()..]),)*];
        calls.to_vec()
    }};
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "call numbers are small and not negative"
)]
pub(super) const fn number(call: libc::c_long) -> u32 {
    call as u32
}

/// Harmless within the other layers.
#[rustfmt::skip]
fn allowed() -> Vec<Call> {
    let mut calls = calls![
        // Files and directories.
        SYS_read SYS_write SYS_pread64 SYS_pwrite64 SYS_readv SYS_writev SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2
        SYS_close SYS_close_range SYS_lseek SYS_fstat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs
        SYS_flock SYS_fsync SYS_fdatasync SYS_sync_file_range SYS_truncate SYS_ftruncate
        SYS_fallocate SYS_fadvise64 SYS_readahead SYS_copy_file_range SYS_sendfile SYS_splice SYS_tee
        SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_umask SYS_mkdirat SYS_unlinkat SYS_linkat SYS_symlinkat
        SYS_readlinkat SYS_renameat2 SYS_faccessat SYS_faccessat2 SYS_fchown
        SYS_fchownat SYS_utimensat SYS_dup SYS_dup3 SYS_pipe2 SYS_memfd_create
        SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_setxattr SYS_lsetxattr
        SYS_fsetxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr
        // Memory.
        SYS_brk SYS_mmap SYS_munmap SYS_mprotect SYS_mremap SYS_madvise SYS_msync SYS_mlock SYS_mlock2
        SYS_munlock SYS_mlockall SYS_munlockall SYS_membarrier SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_mseal
        // Processes, threads and their scheduling.
        SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_set_tid_address SYS_set_robust_list
        SYS_get_robust_list SYS_rseq SYS_futex SYS_futex_waitv
        SYS_restart_syscall SYS_getpid SYS_getppid SYS_gettid SYS_getpgid SYS_setpgid SYS_getsid SYS_setsid
        SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_getgroups SYS_capget SYS_capset
        SYS_getrusage SYS_times SYS_getpriority SYS_setpriority SYS_ioprio_get SYS_ioprio_set
        SYS_sched_yield SYS_sched_getaffinity SYS_sched_setaffinity SYS_sched_getparam SYS_sched_setparam
        SYS_sched_getscheduler SYS_sched_setscheduler SYS_sched_getattr SYS_sched_setattr SYS_sched_get_priority_max
        SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_getcpu SYS_pidfd_open
        // Landlock can only take away.
        SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self
        // Signals, events and time.
        SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending SYS_rt_sigsuspend
        SYS_rt_sigtimedwait SYS_sigaltstack SYS_signalfd4 SYS_eventfd2
        SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_ppoll SYS_pselect6 SYS_timerfd_create
        SYS_timerfd_settime SYS_timerfd_gettime SYS_timer_create SYS_timer_settime SYS_timer_gettime
        SYS_timer_getoverrun SYS_timer_delete SYS_getitimer SYS_setitimer SYS_nanosleep SYS_clock_gettime
        SYS_clock_getres SYS_clock_nanosleep SYS_gettimeofday
        // Sockets, once they are made.
        SYS_bind SYS_connect SYS_listen SYS_accept SYS_accept4 SYS_getsockname SYS_getpeername SYS_getsockopt
        SYS_setsockopt SYS_shutdown SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg
        // System V IPC, in a namespace of its own.
        SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl SYS_semget SYS_semop SYS_semtimedop SYS_semctl SYS_msgget SYS_msgsnd
        SYS_msgrcv SYS_msgctl
        // About the system.
        SYS_uname SYS_sysinfo SYS_getrandom
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend(calls![
        SYS_stat SYS_lstat SYS_access SYS_getdents SYS_mkdir SYS_rmdir SYS_unlink SYS_link SYS_symlink
        SYS_readlink SYS_rename SYS_renameat SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat SYS_dup2
        SYS_pipe SYS_poll SYS_select SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_signalfd SYS_pause
        SYS_alarm SYS_time SYS_fork SYS_vfork SYS_getpgrp SYS_getrlimit SYS_arch_prctl
    ]);
    #[cfg(target_arch = "aarch64")]
    calls.extend(calls![SYS_renameat]);
    calls
}

/// The kernel's administration. No honest program calls these in a sandbox, so an attempt ends the process.
#[rustfmt::skip]
fn trapped() -> Vec<Call> {
    let mut calls = calls![
        SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setfsuid SYS_setfsgid
        SYS_setgroups
        SYS_mount SYS_umount2 SYS_chroot SYS_pivot_root SYS_open_tree SYS_move_mount SYS_fsopen SYS_fsconfig SYS_fsmount
        SYS_fspick SYS_mount_setattr SYS_open_by_handle_at SYS_quotactl SYS_quotactl_fd SYS_swapon SYS_swapoff SYS_acct
        SYS_setns SYS_unshare SYS_sethostname SYS_setdomainname
        SYS_ptrace SYS_bpf SYS_keyctl SYS_add_key SYS_request_key
        SYS_kexec_load SYS_kexec_file_load SYS_init_module SYS_finit_module SYS_delete_module SYS_reboot
        SYS_settimeofday SYS_clock_settime SYS_syslog SYS_vhangup
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend(calls![SYS_iopl SYS_ioperm]);
    calls
}

/// Calls that honest programs try and can do without.
#[rustfmt::skip]
fn not_permitted() -> Vec<Call> {
    let mut calls = calls![
        SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register SYS_perf_event_open SYS_userfaultfd
        SYS_process_vm_readv SYS_process_vm_writev SYS_kcmp SYS_pidfd_getfd SYS_fanotify_init SYS_fanotify_mark
        SYS_name_to_handle_at SYS_seccomp SYS_mbind SYS_set_mempolicy SYS_get_mempolicy SYS_migrate_pages SYS_move_pages
        SYS_adjtimex SYS_clock_adjtime
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend(calls![SYS_modify_ldt]);
    calls
}

/// Calls that seem to work and do nothing: they would make the whole host write its files back.
fn pretended() -> Vec<Call> {
    calls![SYS_sync SYS_syncfs]
}

/// Inotify instances are charged to the owner of the user namespace too, the caller's user, who has 128 of them by default. A child finds
/// that they have run out, and polls.
fn exhausted() -> Vec<Call> {
    #[allow(unused_mut, reason = "aarch64 has only one")]
    let mut calls = calls![SYS_inotify_init1];
    #[cfg(target_arch = "x86_64")]
    calls.extend(calls![SYS_inotify_init]);
    calls
}

/// Calls that reach other processes where a child has no namespaces and no mounts of its own: sockets with an address, System V's objects,
/// and what Landlock does not know of files: their times and attributes.
#[rustfmt::skip]
pub(super) fn shared() -> Vec<Call> {
    #[allow(unused_mut, reason = "aarch64 has no others")]
    let mut calls = calls![
        SYS_socket SYS_bind SYS_connect SYS_listen SYS_accept SYS_accept4
        SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl SYS_semget SYS_semop SYS_semtimedop SYS_semctl SYS_msgget SYS_msgsnd
        SYS_msgrcv SYS_msgctl
        SYS_utimensat SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_setxattr SYS_lsetxattr
        SYS_fsetxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend(calls![SYS_utime SYS_utimes SYS_futimesat]);
    calls
}

/// Calls whose arguments decide.
fn checked() -> Vec<(Call, Check)> {
    let one = |calls: Vec<Call>, check| calls.into_iter().map(move |call| (call, check));
    let mut all: Vec<(Call, Check)> = Vec::new();
    all.extend(one(calls![SYS_clone], Check::CloneFlags));
    all.extend(one(calls![SYS_socket], Check::SocketFamily));
    all.extend(one(calls![SYS_socketpair], Check::SocketPairFamily));
    all.extend(one(calls![SYS_fcntl], Check::FcntlCommand));
    all.extend(one(calls![SYS_ioctl], Check::IoctlRequest));
    all.extend(one(calls![SYS_prctl], Check::PrctlOption));
    all.extend(one(calls![SYS_personality], Check::Personality));
    all.extend(one(calls![SYS_mknodat], Check::NodeMode(2)));
    all.extend(one(calls![SYS_fchmod], Check::FileMode(1)));
    all.extend(one(calls![SYS_fchmodat SYS_fchmodat2], Check::FileMode(2)));
    all.extend(one(calls![SYS_openat], Check::OpenMode(2)));
    #[cfg(target_arch = "x86_64")]
    {
        all.extend(one(calls![SYS_mknod], Check::NodeMode(1)));
        all.extend(one(calls![SYS_chmod SYS_creat], Check::FileMode(1)));
        all.extend(one(calls![SYS_open], Check::OpenMode(1)));
    }
    #[cfg(target_arch = "x86_64")]
    all.extend(one(calls![SYS_setrlimit], Check::SetrlimitResource));
    all.extend(one(calls![SYS_mincore], Check::MincoreLength));
    all.extend(one(calls![SYS_prlimit64], Check::PrlimitResource));
    all.extend(one(calls![SYS_rt_sigaction], Check::Sigaction));
    all.extend(one(calls![SYS_rt_sigqueueinfo SYS_pidfd_send_signal], Check::QueuedSignal(1)));
    all.extend(one(calls![SYS_rt_tgsigqueueinfo], Check::QueuedSignal(2)));
    all
}

/// Every call with a rule of its own, sorted by number. `clone3` is not among them: glibc falls back to `clone` on `ENOSYS`, whose
/// flags a filter can read.
#[must_use]
pub fn rules() -> Vec<(u32, Rule)> {
    let mut rules: Vec<(u32, Rule)> = Vec::new();
    rules.extend(allowed().into_iter().map(|(number, _)| (number, Rule::Allow)));
    rules.extend(trapped().into_iter().map(|(number, _)| (number, Rule::Trap)));
    rules.extend(not_permitted().into_iter().map(|(number, _)| (number, Rule::Errno(libc::EPERM))));
    rules.extend(pretended().into_iter().map(|(number, _)| (number, Rule::Errno(0))));
    rules.extend(exhausted().into_iter().map(|(number, _)| (number, Rule::Errno(libc::EMFILE))));
    rules.extend(checked().into_iter().map(|((number, _), check)| (number, Rule::Check(check))));
    rules.sort_unstable_by_key(|(number, _)| *number);
    rules
}

/// The trapped calls, sorted by number, for the message on standard error.
#[must_use]
pub fn trapped_names() -> Vec<Call> {
    let mut names = trapped();
    names.sort_unstable();
    names
}

/// The name of a trapped call.
#[must_use]
pub fn trapped_name(number: u32) -> Option<&'static str> {
    trapped().into_iter().find_map(|(trapped, name)| (trapped == number).then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_has_two_rules() {
        let rules = rules();
        assert!(rules.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(rules.len() > 200);
    }
}
