//! The rules as a program for the kernel's classic BPF: a balanced tree over call numbers, so that a call meets about eight
//! comparisons and installing stays cheap. (seccompiler makes a linear filter and sets `no_new_privs` itself, which is a layer of
//! its own here.)

use super::table::{Call, Check, Rule, rules};
pub use crate::sys::kernel::Instruction;

// Operations of classic BPF; linux/filter.h.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_IF_ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// Answers; seccomp(2).
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_TRAP: u32 = 0x0003_0000;
const RET_KILL_PROCESS: u32 = 0x8000_0000;

const EPERM: u32 = errno(libc::EPERM);
const ENOSYS: u32 = errno(libc::ENOSYS);
const EAFNOSUPPORT: u32 = errno(libc::EAFNOSUPPORT);
/// The call is not made, and seems to have worked.
const PRETEND: u32 = errno(0);

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64

/// Numbers from here on are x32 calls on `x86_64`; elsewhere no call has them.
const X32: u32 = 0x4000_0000;

/// The low half of an argument, on a little-endian machine.
const fn low(argument: u32) -> u32 {
    16 + 8 * argument
}

const fn high(argument: u32) -> u32 {
    low(argument) + 4
}

const fn errno(number: i32) -> u32 {
    RET_ERRNO | number.unsigned_abs()
}

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset }
}

const fn and(mask: u32) -> Instruction {
    Instruction { code: AND, jt: 0, jf: 0, k: mask }
}

const fn answer(k: u32) -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k }
}

/// Skips the next instruction unless the accumulator equals `k`.
const fn unless_equal_skip(k: u32) -> Instruction {
    Instruction { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k }
}

/// The whole filter.
#[must_use]
pub fn program() -> Vec<Instruction> {
    let mut program = vec![
        load(ARCHITECTURE),
        Instruction { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: NATIVE },
        answer(RET_KILL_PROCESS),
        load(NUMBER),
        Instruction { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: X32 },
        answer(RET_KILL_PROCESS),
    ];
    program.extend(tree(&leaves()));
    program
}

/// A filter that answers `EACCES` to these calls, and to socket pairs of datagrams, which can be sent elsewhere too. It lets all others
/// through.
pub(super) fn refusing(calls: &[Call], socketpair: u32) -> Vec<Instruction> {
    const EACCES: u32 = errno(libc::EACCES);
    let mut program = vec![load(NUMBER)];
    for (number, _) in calls {
        program.extend([unless_equal_skip(*number), answer(EACCES)]);
    }
    program.extend([
        Instruction { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: socketpair },
        answer(RET_ALLOW),
        load(low(1)),
        and(SOCKET_TYPE_MASK),
    ]);
    program.extend(switch(&CONNECTED_TYPES, RET_ALLOW, EACCES));
    program
}

/// Runs of numbers with one answer: `(first number, code)`, the first from 0.
fn leaves() -> Vec<(u32, Vec<Instruction>)> {
    let unknown = || vec![answer(ENOSYS)];
    let mut leaves: Vec<(u32, Vec<Instruction>)> = Vec::new();
    let mut next = 0;
    let mut push = |first: u32, code: Vec<Instruction>| {
        if leaves.last().is_none_or(|(_, last)| *last != code) {
            leaves.push((first, code));
        }
    };
    for (number, rule) in rules() {
        if number > next {
            push(next, unknown());
        }
        push(number, code_of(rule));
        next = number + 1;
    }
    push(next, unknown());
    leaves
}

fn code_of(rule: Rule) -> Vec<Instruction> {
    match rule {
        Rule::Allow => vec![answer(RET_ALLOW)],
        Rule::Errno(errno) => vec![answer(self::errno(errno))],
        Rule::Trap => vec![answer(RET_TRAP)],
        Rule::Check(check) => code_of_check(check),
    }
}

/// Every path through a leaf ends in an answer, so trees need no joins.
fn tree(leaves: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    if let [(_, code)] = leaves {
        return code.clone();
    }
    let (below, above) = leaves.split_at(leaves.len() / 2);
    let (below, from, above) = (tree(below), above[0].0, tree(above));
    let mut code = match u8::try_from(below.len()) {
        Ok(distance) => vec![Instruction { code: JUMP_IF_AT_LEAST, jt: distance, jf: 0, k: from }],
        // Conditional jumps reach 255 instructions; the plain one reaches anywhere.
        Err(_) => vec![
            Instruction { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: from },
            Instruction { code: JUMP, jt: 0, jf: 0, k: u32::try_from(below.len()).unwrap_or(u32::MAX) },
        ],
    };
    code.extend(below);
    code.extend(above);
    code
}

/// `then` for every listed value of the accumulator, else `otherwise`.
fn switch(values: &[u32], then: u32, otherwise: u32) -> Vec<Instruction> {
    let mut code = Vec::new();
    for value in values {
        code.extend([unless_equal_skip(*value), answer(then)]);
    }
    code.push(answer(otherwise));
    code
}

fn code_of_check(check: Check) -> Vec<Instruction> {
    match check {
        Check::CloneFlags => vec![
            load(low(0)),
            Instruction { code: JUMP_IF_ANY_BIT, jt: 0, jf: 1, k: NEW_NAMESPACES },
            answer(EPERM),
            answer(RET_ALLOW),
        ],
        Check::SocketFamily => socket(),
        Check::SocketPairFamily => on_argument(0, &switch(&[AF_UNIX], RET_ALLOW, EAFNOSUPPORT)),
        Check::FcntlCommand => on_argument(1, &switch(&FILE_WATCHES, EPERM, RET_ALLOW)),
        Check::IoctlRequest => on_argument(1, &switch(&TERMINAL_REQUESTS, EPERM, RET_ALLOW)),
        Check::PrctlOption => on_argument(0, &switch(&PRCTL_OPTIONS, RET_ALLOW, EPERM)),
        Check::Personality => on_argument(0, &switch(&[0, u32::MAX], RET_ALLOW, EPERM)),
        Check::NodeMode(mode) => [mknod(mode), no_set_id(mode)].concat(),
        Check::FileMode(mode) => no_set_id(mode),
        Check::OpenMode(flags) => {
            // Without one of these there is no mode.
            let made = Instruction { code: JUMP_IF_ANY_BIT, jt: 1, jf: 0, k: MAKES_A_FILE };
            [&[load(low(flags)), made, answer(RET_ALLOW)], no_set_id(flags + 1).as_slice()].concat()
        }
        Check::MincoreLength => {
            vec![load(high(1)), unless_equal_skip(0), answer(RET_ALLOW), answer(errno(libc::ENOMEM))]
        }
        Check::SetrlimitResource => {
            on_argument(0, &[unless_equal_skip(RLIMIT_CORE), answer(PRETEND), answer(RET_ALLOW)])
        }
        Check::PrlimitResource => pretend_to_change(1, RLIMIT_CORE, 2),
        Check::QueuedSignal(signal) => on_argument(
            signal,
            &[unless_equal_skip(libc::SIGSYS.unsigned_abs()), answer(EPERM), answer(RET_ALLOW)],
        ),
        Check::Sigaction => pretend_to_change(0, libc::SIGSYS.unsigned_abs(), 1),
    }
}

/// Where argument `what` is `protected` and the pointer in argument `new` is not null, pretends; else allows.
fn pretend_to_change(what: u32, protected: u32, new: u32) -> Vec<Instruction> {
    vec![
        load(low(what)),
        Instruction { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: protected },
        answer(RET_ALLOW),
        load(low(new)),
        Instruction { code: JUMP_IF_EQUAL, jt: 0, jf: 2, k: 0 },
        load(high(new)),
        Instruction { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: 0 },
        answer(PRETEND),
        answer(RET_ALLOW),
    ]
}

fn on_argument(argument: u32, then: &[Instruction]) -> Vec<Instruction> {
    [&[load(low(argument))], then].concat()
}

/// All `CLONE_NEW`* of clone(2). `CLONE_NEWTIME` shares its bit with the exit signal there and cannot be asked for.
const NEW_NAMESPACES: u32 = 0x7e02_0000;

/// `RLIMIT_CORE`, the same on both architectures.
const RLIMIT_CORE: u32 = 4;

const AF_UNIX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// `SOCK_STREAM` and `SOCK_DGRAM`: no raw sockets.
const SOCKET_TYPES: [u32; 2] = [1, 2];
/// `SOCK_STREAM` and `SOCK_SEQPACKET`: of a pair, what is sent goes to the other one.
const CONNECTED_TYPES: [u32; 2] = [1, 5];
/// `SOCK_TYPE_MASK`: the rest of the word is `SOCK_NONBLOCK` and `SOCK_CLOEXEC`.
const SOCKET_TYPE_MASK: u32 = 0xf;
/// The family's own, ICMP echo, TCP, UDP, `ICMPv6` echo.
const SOCKET_PROTOCOLS: [u32; 5] = [0, 1, 6, 17, 58];

fn socket() -> Vec<Instruction> {
    let protocol = on_argument(2, &switch(&SOCKET_PROTOCOLS, RET_ALLOW, EPERM));
    let mut kind = vec![load(low(1)), and(SOCKET_TYPE_MASK)];
    // Stream: over the second comparison and the refusal. Datagram: over the refusal.
    kind.extend([
        Instruction { code: JUMP_IF_EQUAL, jt: 2, jf: 0, k: SOCKET_TYPES[0] },
        Instruction { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: SOCKET_TYPES[1] },
        answer(EPERM),
    ]);
    let mut code = vec![
        load(low(0)),
        unless_equal_skip(AF_UNIX),
        answer(RET_ALLOW),
        Instruction { code: JUMP_IF_EQUAL, jt: 2, jf: 0, k: AF_INET },
        Instruction { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: AF_INET6 },
        answer(EAFNOSUPPORT),
    ];
    code.extend(kind);
    code.extend(protocol);
    code
}

/// Refuses devices, and goes on with anything else.
fn mknod(mode: u32) -> Vec<Instruction> {
    const S_IFMT: u32 = 0o170_000;
    const DEVICES: [u32; 2] = [0o020_000, 0o060_000];
    let mut code = vec![load(low(mode)), and(S_IFMT)];
    for device in DEVICES {
        code.extend([unless_equal_skip(device), answer(EPERM)]);
    }
    code
}

/// `S_ISUID` and `S_ISGID`.
const SET_ID: u32 = 0o6000;

/// `O_CREAT`, and the bit of `O_TMPFILE` that is its own.
const MAKES_A_FILE: u32 = 0o100 | 0o20_000_000;

fn no_set_id(mode: u32) -> Vec<Instruction> {
    vec![
        load(low(mode)),
        Instruction { code: JUMP_IF_ANY_BIT, jt: 0, jf: 1, k: SET_ID },
        answer(EPERM),
        answer(RET_ALLOW),
    ]
}

/// `F_SETLEASE`, `F_NOTIFY`.
const FILE_WATCHES: [u32; 2] = [1024, 1026];

/// TIOCSTI, TIOCLINUX, TIOCSETD: the same on both architectures.
const TERMINAL_REQUESTS: [u32; 3] = [0x5412, 0x541c, 0x5423];

/// Options of prctl(2) that concern only the calling process and give it nothing.
const PRCTL_OPTIONS: [u32; 20] = [
    1,           // PR_SET_PDEATHSIG
    2,           // PR_GET_PDEATHSIG
    3,           // PR_GET_DUMPABLE
    4,           // PR_SET_DUMPABLE
    7,           // PR_GET_KEEPCAPS
    15,          // PR_SET_NAME
    16,          // PR_GET_NAME
    21,          // PR_GET_SECCOMP
    23,          // PR_CAPBSET_READ
    27,          // PR_GET_SECUREBITS
    29,          // PR_SET_TIMERSLACK
    30,          // PR_GET_TIMERSLACK
    36,          // PR_SET_CHILD_SUBREAPER
    37,          // PR_GET_CHILD_SUBREAPER
    38,          // PR_SET_NO_NEW_PRIVS
    39,          // PR_GET_NO_NEW_PRIVS
    40,          // PR_GET_TID_ADDRESS
    41,          // PR_SET_THP_DISABLE
    42,          // PR_GET_THP_DISABLE
    0x5356_4d41, // PR_SET_VMA: names for /proc/self/maps
];
