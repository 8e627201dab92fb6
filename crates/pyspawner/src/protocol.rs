//! The private protocol between caller, zygote, watchdog and child: one frame is one `SOCK_SEQPACKET` message.
//!
//! A frame is a magic, a version and a postcard body. Descriptors travel beside it (`SCM_RIGHTS`), and every message
//! knows how many belong to it. Whatever arrives ends in a message or in a [`ProtocolError`], never in a panic.

use std::ffi::CString;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::layer::Layer;

#[cfg(test)]
mod tests;

/// The first bytes of every frame.
const MAGIC: [u8; 4] = *b"pysp";

/// Rises with every change of a message. Both ends must have the same.
pub const VERSION: u16 = 7;

/// Bytes before the body: magic, version, conversation.
const HEADER: usize = MAGIC.len() + size_of::<u16>() + 1;

/// A frame that is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Shorter than its header, or cut short by the kernel.
    #[error("frame of {length} bytes is cut short")]
    Truncated {
        /// The bytes that arrived.
        length: usize,
    },
    /// Longer than this message can be.
    #[error("frame of {length} bytes is longer than the limit of {limit}")]
    Oversized {
        /// The frame's length.
        length: usize,
        /// The longest that is allowed.
        limit: usize,
    },
    /// Not our magic.
    #[error("frame does not start with pyspawner's magic")]
    Magic,
    /// Another version of pyspawner is at the other end.
    #[error("the other end speaks version {theirs} of the protocol and not {VERSION}")]
    Version {
        /// The version at the other end.
        theirs: u16,
    },
    /// A message of another type.
    #[error("message of conversation {theirs} and not {ours}")]
    Conversation {
        /// The conversation that is held here.
        ours: u8,
        /// The one that the message belongs to.
        theirs: u8,
    },
    /// The body is no message of this type.
    #[error("malformed body: {0}")]
    Body(#[from] postcard::Error),
    /// Bytes after the message.
    #[error("{extra} bytes follow the message")]
    TrailingBytes {
        /// How many.
        extra: usize,
    },
    /// More or fewer descriptors than the message has.
    #[error("message came with {got} file descriptors and not {expected}")]
    DescriptorCount {
        /// How many belong to this message.
        expected: usize,
        /// How many arrived.
        got: usize,
    },
    /// A message that makes no sense at this point of the conversation.
    #[error("unexpected message while {waiting_for}")]
    OutOfOrder {
        /// What the receiver was waiting for.
        waiting_for: &'static str,
    },
}

/// A message and what belongs to it.
pub trait Message: Serialize + DeserializeOwned {
    /// Tells the types apart: postcard does not say what it encodes.
    const CONVERSATION: u8;

    /// The longest frame of this type, in bytes.
    const MAX_FRAME: usize;

    /// How many descriptors travel with this message.
    fn descriptors(&self) -> usize;
}

/// The longest frame of all.
const LARGE: usize = 128 * 1024;

/// The longest traceback that fits a frame, in bytes.
pub const MAX_TRACEBACK: usize = LARGE / 2;

/// Caller to zygote, on the zygote's socket, until the zygote is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToZygote {
    /// The first message. With it: the caller's pidfd, its standard output, its standard error.
    Start(Start),
    /// Answer to [`FromZygote::HandOver`]: the caller is a child subreaper now.
    Proceed,
}

/// What the zygote is to import and run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The caller's pid, in the pid namespace that it shares with the zygote.
    pub caller: i32,
    /// `package.module.function`.
    pub child_main: String,
    /// Modules to import, in order.
    pub preload_imports: Vec<String>,
    /// The caller's `sys.path`, as bytes of the filesystem encoding; `None` keeps the zygote's own.
    pub sys_path: Option<Vec<Vec<u8>>>,
    /// Whether what imports leave in memory is to be moved to an image that clones need not copy.
    pub memory_image: bool,
    /// `package.module.function`, for children that park.
    pub warm_up: Option<String>,
}

impl Message for ToZygote {
    const CONVERSATION: u8 = 1;
    const MAX_FRAME: usize = LARGE;

    fn descriptors(&self) -> usize {
        match self {
            Self::Start(_) => 3,
            Self::Proceed => 0,
        }
    }
}

/// Caller to zygote, on the zygote's socket, from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Clone a child. With it: one end of the child's private socket, whose other end the caller keeps; the child's cgroup, if it has one; and
    /// the trees that the child gets read-only, for it to find at its birth.
    Spawn(Spawn),
    /// Clone another zygote. With it: the other zygote's socket, on which all else is said, from [`FromZygote::Derived`] and
    /// [`ToZygote::Start`] on.
    Derive,
}

impl Message for Request {
    const CONVERSATION: u8 = 2;
    const MAX_FRAME: usize = 64;

    fn descriptors(&self) -> usize {
        match self {
            Self::Spawn(spawn) => 1 + usize::from(spawn.cgroup) + usize::from(spawn.trees),
            Self::Derive => 1,
        }
    }
}

/// All that the zygote learns about a child: what it does not know, no later child can find in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// How many trees come with the message.
    pub trees: u8,
    /// Into new namespaces, as all but those are that are told to do without.
    pub namespaces: bool,
    /// Into the cgroup that comes with the message.
    pub cgroup: bool,
    /// The microseconds of CPU time that the cgroup may use, or without one the child itself.
    pub cpu_microseconds: Option<u64>,
}

/// Zygote to caller, on the zygote's socket, until it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromZygote {
    /// The answer to [`Request::Derive`], from the clone and once more from its zygote: if one of the two is killed, the caller still knows
    /// what to reap. With it: the clone's pidfd. It waits for [`ToZygote::Start`].
    Derived {
        /// The clone's pid.
        pid: i32,
    },
    /// The interpreter is up. With it: the watchdog's pidfd, and a line to it, of [`Companion`].
    Hello {
        /// The watchdog's pid.
        watchdog: i32,
    },
    /// The import of a module begins.
    Importing {
        /// Its name.
        module: String,
    },
    /// An import failed, or `child_main` is not what it should be.
    Failed {
        /// One line for people.
        summary: String,
        /// The whole traceback.
        traceback: String,
    },
    /// The zygote is about to fork itself, to leave the threads of its imports behind.
    HandOver,
    /// It has, and ends now. With it: the pidfd of its successor.
    HandedOver {
        /// The successor's pid.
        pid: i32,
    },
    /// The zygote serves.
    Ready {
        /// Why there is no image of its memory, if the caller wants one.
        no_memory_image: Option<String>,
        /// The threads that imports started, as `(module, thread names)`.
        threads: Vec<(String, Vec<String>)>,
    },
}

impl Message for FromZygote {
    const CONVERSATION: u8 = 3;
    const MAX_FRAME: usize = LARGE;

    fn descriptors(&self) -> usize {
        match self {
            Self::Hello { .. } => 2,
            Self::Derived { .. } | Self::HandedOver { .. } => 1,
            Self::Importing { .. } | Self::Failed { .. } | Self::HandOver | Self::Ready { .. } => 0,
        }
    }
}

/// Caller to child, on the child's private socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is one of each in a spawn")]
pub enum Order {
    /// Enter the sandbox. With it: the mounts that [`Filesystem`] says are sent.
    Enter(Orders),
    /// Run `child_main`. With it: stdin, stdout, stderr and the memfd of the pickled args.
    Run,
    /// The same to a child that is parked, with the same descriptors. It takes its name, and answers [`Report::Running`].
    Wake {
        /// The name for `comm` and the command line.
        process_name: String,
    },
}

/// The sandbox of one child, computed by the caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// The name for `comm` and the command line.
    pub process_name: Option<String>,
    /// The working directory, if it is not to stay the caller's.
    pub working_dir: Option<CString>,
    /// What it sees of the filesystem; `None`: it is without namespaces, and sees the host.
    pub view: Option<View>,
    /// The child's half of the network.
    pub network: Option<ChildNetwork>,
    /// The optional layers that are on.
    pub optional_layers: Vec<Layer>,
    /// The Landlock ABI to use, if that layer is on.
    pub landlock_abi: u8,
    /// What each of its processes may use.
    pub rlimits: Rlimits,
    /// It gets ready to run, and then waits to be woken.
    pub parks: bool,
}

/// What each process of a child may use. `None`: as much as the zygote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimits {
    /// Private writable memory, what the zygote has included.
    pub data_bytes: Option<u64>,
    /// CPU time.
    pub cpu_seconds: Option<u64>,
    /// Processes and threads of the child's user.
    pub processes: Option<u64>,
    /// Descriptors.
    pub open_files: Option<u64>,
    /// The size of a file.
    pub file_bytes: Option<u64>,
    /// Added to the zygote's niceness.
    pub nice: u8,
}

/// What a child sees of the filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The first tree of [`Spawn`] is the root; else it is the host, less what is private.
    pub chroot: bool,
    /// In the view of the host: a `/proc`.
    pub proc: bool,
    /// In the view of the host: the bytes of `/tmp` and its like.
    pub tmp_bytes: u64,
    /// Small files to show, read-only, before anything is mounted.
    pub files: Vec<FileOrder>,
    /// What to mount, in this order.
    pub mounts: Vec<MountOrder>,
}

/// A file of the child's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOrder {
    /// Where, in the child's root.
    pub target: CString,
    /// What is in it.
    pub content: String,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOrder {
    /// Where, in the child's root.
    pub target: CString,
    /// What.
    pub filesystem: Filesystem,
}

/// What to mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filesystem {
    /// A tree of [`Spawn`].
    Tree {
        /// Its number there.
        number: u8,
        /// Whether it is a directory, and not a single file.
        is_directory: bool,
    },
    /// A tree that comes with the order.
    Sent,
    /// An empty one in memory.
    Tmpfs {
        /// Its most bytes.
        size_bytes: u64,
        /// Its most inodes.
        max_inodes: u64,
    },
    /// Changes over a tree that comes with the order; without a size, they go to a second one.
    Overlay {
        /// The most bytes of changes, in memory.
        size_bytes: Option<u64>,
    },
    /// The child's own processes.
    Proc,
    /// A few devices.
    Dev {
        /// With pseudoterminals.
        ptmx: bool,
    },
}

impl Filesystem {
    /// How many descriptors travel with the order.
    #[must_use]
    pub fn descriptors(self) -> usize {
        match self {
            Self::Sent | Self::Overlay { size_bytes: Some(_) } => 1,
            Self::Overlay { size_bytes: None } => 2,
            Self::Tree { .. } | Self::Tmpfs { .. } | Self::Proc | Self::Dev { .. } => 0,
        }
    }
}

/// The child's half of its network: a `lo` that is up, and one end of a veth pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildNetwork {
    /// The interface's name in the child; `None`: there is only the `lo`.
    pub interface: Option<String>,
    /// Its addresses.
    pub addresses: Vec<ChildAddress>,
    /// User code may open sockets for ICMP echo.
    pub ping: bool,
}

/// An address of a child, and the way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildAddress {
    /// With the length of the prefix that it shares with the gateway.
    pub address: IpNet,
    /// The caller's end.
    pub gateway: IpAddr,
}

impl Message for Order {
    const CONVERSATION: u8 = 4;
    const MAX_FRAME: usize = 16 * 1024;

    fn descriptors(&self) -> usize {
        match self {
            Self::Enter(orders) => {
                let mounts = orders.view.iter().flat_map(|view| &view.mounts);
                mounts.map(|mount| mount.filesystem.descriptors()).sum()
            }
            Self::Run | Self::Wake { .. } => 4,
        }
    }
}

/// To the caller, on the child's private socket: from the zygote until [`Report::Spawned`], from the child after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The child's first act. The kernel adds its pid (`SCM_CREDENTIALS`), so that no child is lost when the zygote is
    /// killed between the clone and its own report.
    Born,
    /// From the zygote: the child waits for its orders. With it: the child's pidfd.
    Spawned {
        /// The child's pid as the caller sees it.
        pid: i32,
        /// The first host id of the child's range; `None`: it has only one id, the caller's own.
        first_id: Option<u32>,
    },
    /// From the zygote: no child, or one that must be reaped.
    NotSpawned {
        /// The layer that failed.
        failure: Failure,
        /// The killed child.
        pid: Option<i32>,
    },
    /// From the child: these layers are on.
    Entered {
        /// In the order in which they were applied, each with the nanoseconds that it took.
        layers: Vec<(Layer, u32)>,
    },
    /// From the child, its last words.
    Failed(Failure),
    /// From a child that parks: it is ready, and waits to be woken. With it: its own end of the socket, so that the caller can take an order
    /// back. Not before: as long as no other process has that end, the child's death is the end of the conversation.
    Parked,
    /// From one that cannot, its last words.
    WarmUpFailed {
        /// One line for people.
        summary: String,
    },
    /// From one that was woken: user code runs next.
    Running,
}

/// The longest that [`Report::WarmUpFailed`] can say, in bytes.
pub const MAX_SUMMARY: usize = 512;

impl Message for Report {
    const CONVERSATION: u8 = 5;
    const MAX_FRAME: usize = 1024;

    fn descriptors(&self) -> usize {
        usize::from(matches!(self, Self::Spawned { .. } | Self::Parked))
    }
}

/// CPU time, after which a child is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuBudget {
    /// How much, in microseconds.
    pub microseconds: u64,
    /// Of all in its cgroup, and not of this process.
    pub of_cgroup: bool,
    /// The process.
    pub pid: i32,
}

/// Zygote to watchdog and back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Watch {
    /// From the zygote: kill this process when the caller dies. With it: its pidfd, and its cgroup's `cpu.stat` if the budget is of that.
    This {
        /// How much CPU time it has.
        budget: Option<CpuBudget>,
    },
    /// From the watchdog: the answer to [`Watch::This`].
    Watching,
    /// From the watchdog: the process cannot be watched.
    Refused {
        /// What the kernel said.
        errno: i32,
    },
}

impl Message for Watch {
    const CONVERSATION: u8 = 6;
    const MAX_FRAME: usize = 64;

    fn descriptors(&self) -> usize {
        match self {
            Self::This { budget } => 1 + usize::from(budget.is_some_and(|budget| budget.of_cgroup)),
            Self::Watching | Self::Refused { .. } => 0,
        }
    }
}

/// Caller to watchdog and back: programs that a child needs and that end with it, whoever else is still there. The caller asks, and waits for
/// the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Companion {
    /// From the caller: run a program, and kill it when a child ends. With it: the child's pidfd, and the program's standard output and error.
    Run {
        /// Its path.
        program: CString,
        /// Its arguments, without its name.
        arguments: Vec<String>,
    },
    /// From the watchdog: it runs.
    Running,
    /// From the watchdog: it does not.
    Refused {
        /// What the kernel said.
        errno: i32,
    },
    /// From the caller: kill a child when this is used up; see [`Watch::This`]. With it: the child's pidfd, and its cgroup's `cpu.stat` if the
    /// budget is of that. The answer is [`Companion::Running`] or [`Companion::Refused`].
    Limit {
        /// How much CPU time it has.
        budget: CpuBudget,
    },
    /// From the caller: kill all. It asks for no other.
    EndAll,
    /// From the watchdog: none is left.
    Ended,
}

impl Message for Companion {
    const CONVERSATION: u8 = 7;
    const MAX_FRAME: usize = 16 * 1024;

    fn descriptors(&self) -> usize {
        match self {
            Self::Run { .. } => 3,
            Self::Limit { budget } => 1 + usize::from(budget.of_cgroup),
            Self::Running | Self::Refused { .. } | Self::EndAll | Self::Ended => 0,
        }
    }
}

/// A message as a frame.
///
/// # Errors
///
/// [`ProtocolError::Oversized`] when the message is longer than its type allows.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, ProtocolError> {
    let mut frame = Vec::with_capacity(64);
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&VERSION.to_le_bytes());
    frame.push(M::CONVERSATION);
    let frame = postcard::to_extend(message, frame)?;
    if frame.len() > M::MAX_FRAME {
        return Err(ProtocolError::Oversized { length: frame.len(), limit: M::MAX_FRAME });
    }
    Ok(frame)
}

/// A frame as a message.
///
/// # Errors
///
/// Anything that is not exactly one frame of this type.
pub fn decode<M: Message>(frame: &[u8]) -> Result<M, ProtocolError> {
    if frame.len() > M::MAX_FRAME {
        return Err(ProtocolError::Oversized { length: frame.len(), limit: M::MAX_FRAME });
    }
    let (&[a, b, c, d, low, high, conversation], body) =
        frame.split_first_chunk::<HEADER>().ok_or(ProtocolError::Truncated { length: frame.len() })?;
    if [a, b, c, d] != MAGIC {
        return Err(ProtocolError::Magic);
    }
    let theirs = u16::from_le_bytes([low, high]);
    if theirs != VERSION {
        return Err(ProtocolError::Version { theirs });
    }
    if conversation != M::CONVERSATION {
        return Err(ProtocolError::Conversation { ours: M::CONVERSATION, theirs: conversation });
    }
    let (message, rest) = postcard::take_from_bytes(body)?;
    if !rest.is_empty() {
        return Err(ProtocolError::TrailingBytes { extra: rest.len() });
    }
    Ok(message)
}

/// Checks that a message came with its descriptors.
///
/// # Errors
///
/// [`ProtocolError::DescriptorCount`].
pub fn check_descriptors<M: Message>(message: &M, got: usize) -> Result<(), ProtocolError> {
    let expected = message.descriptors();
    if expected == got { Ok(()) } else { Err(ProtocolError::DescriptorCount { expected, got }) }
}
