//! Starting a zygote: run the interpreter, tell it what to import, wait until it serves.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, child_subreaper, getpid, pidfd_open, set_child_subreaper};

use super::cgroup::Delegation;
use super::companions::Companions;
use super::network::Networks;
use super::process::Process;
use super::warm::Pools;
use super::{CLOSE_PATIENCE, Client, Interrupt, channel_error, lock, readable_within, wait_for};
use crate::channel::{Channel, ChannelError, Received};
use crate::config::PROCESS_NAME_MAX;
use crate::error::{Error, StartError, Status};
use crate::protocol::{FromZygote, ProtocolError, Start, ToZygote};
use crate::sys::command::{NO_IDS, isolate};
use crate::sys::wait::{kill_unreaped, reap_unreaped};

/// The most of a dying interpreter's standard error that goes into an exception, in bytes.
const MAX_STDERR: u64 = 64 * 1024;

/// Being a child subreaper is a property of the whole process, so only one zygote is handed over at a time.
static SUBREAPER: Mutex<()> = Mutex::new(());

/// How to start a zygote.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// The interpreter.
    pub executable: PathBuf,
    /// Its arguments. The number of the zygote's socket and a placeholder for the process title follow them.
    pub arguments: Vec<OsString>,
    /// The zygote's and every child's whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// `package.module.function`.
    pub child_main: String,
    /// Modules to import, in order.
    pub preload_imports: Vec<String>,
    /// The caller's `sys.path`; `None` keeps the interpreter's own.
    pub sys_path: Option<Vec<Vec<u8>>>,
    /// Whether what imports leave in memory is moved to an image that clones need not copy.
    pub memory_image: bool,
    /// How many children to park of a sandbox that is used, so that the next ones need not be cloned.
    pub warm_children: usize,
    /// `package.module.function`, which each of them calls before it parks.
    pub warm_up: Option<String>,
}

impl Client {
    /// Starts a zygote and waits until it serves.
    ///
    /// # Errors
    ///
    /// [`StartError`] when the interpreter does not run, an import fails or `child_main` is no function; no process is left then.
    pub fn start(options: StartOptions, interrupt: Interrupt<'_>) -> Result<Self, Error> {
        // First of all: in a caller that has closed its standard streams, any descriptor made here would get their numbers.
        let callers = CallersDescriptors::open()?;
        let (ours, theirs) = Channel::pair().map_err(Error::io("socketpair"))?;
        let theirs = theirs.above_stdio().map_err(Error::io("fcntl(F_DUPFD_CLOEXEC)"))?;
        let mut starting = Starting::new(ours);
        let begun = starting.run(&options, &theirs);
        drop(theirs);
        let StartOptions {
            executable,
            child_main,
            preload_imports,
            sys_path,
            memory_image,
            warm_up,
            warm_children,
            ..
        } = options;
        let start = Start { caller: caller(), child_main, preload_imports, sys_path, memory_image, warm_up };
        let started = begun.and_then(|()| starting.handshake(&executable, start, &callers, interrupt));
        starting.finish(started, warm_children)
    }
}

/// What a zygote is given of its caller.
pub(super) struct CallersDescriptors {
    pidfd: OwnedFd,
    outputs: [OwnedFd; 2],
}

impl CallersDescriptors {
    pub(super) fn open() -> Result<Self, Error> {
        Ok(Self {
            outputs: [own_output(1)?, own_output(2)?],
            pidfd: pidfd_open(getpid(), PidfdFlags::empty()).map_err(Error::io("pidfd_open"))?,
        })
    }
}

/// As a zygote must know it.
pub(super) fn caller() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// A zygote that does not serve yet.
#[derive(Debug)]
pub(super) struct Starting {
    connection: Channel,
    /// The interpreter's standard error, until it has introduced itself.
    errors: Option<OwnedFd>,
    process: Option<Process>,
    watchdog: Option<Process>,
    /// To the watchdog.
    line: Option<Channel>,
    importing: Option<String>,
}

/// What a zygote has told of itself when it serves.
pub(super) struct Started {
    zygote: Process,
    watchdog: Process,
    /// To the watchdog.
    line: Channel,
    threads: Vec<(String, Vec<String>)>,
    memory_image: bool,
    no_memory_image: Option<String>,
    data_bytes: u64,
}

impl Starting {
    pub(super) fn new(connection: Channel) -> Self {
        Self { connection, errors: None, process: None, watchdog: None, line: None, importing: None }
    }

    /// The Client of a zygote that serves. Of one that does not, nothing is left.
    pub(super) fn finish(
        self,
        started: Result<Started, Error>,
        warm_children: usize,
    ) -> Result<Client, Error> {
        match started {
            Ok(Started { zygote, watchdog, line, threads, memory_image, no_memory_image, data_bytes }) => {
                let companions = Arc::new(Companions::new(line));
                Ok(Client {
                    data_bytes,
                    delegation: Delegation::default(),
                    networks: Networks::new(Arc::clone(&companions)),
                    companions,
                    pools: Arc::new(Pools::new(warm_children)),
                    owner: std::process::id(),
                    connection: Mutex::new(Some(self.connection)),
                    zygote,
                    watchdog,
                    threads,
                    memory_image,
                    no_memory_image,
                    abandoned: Mutex::default(),
                    abandoned_clones: Mutex::default(),
                })
            }
            Err(error) => {
                self.end();
                Err(error)
            }
        }
    }

    /// Kills and reaps what there is of it.
    pub(super) fn end(self) {
        self.connection.shut_down();
        for process in [self.process, self.watchdog].into_iter().flatten() {
            process.kill();
        }
    }

    /// Tells the zygote what to do, and waits until it serves.
    pub(super) fn handshake(
        &mut self,
        executable: &Path,
        start: Start,
        callers: &CallersDescriptors,
        interrupt: Interrupt<'_>,
    ) -> Result<Started, Error> {
        let memory_image = start.memory_image;
        let CallersDescriptors { pidfd, outputs: [stdout, stderr] } = callers;
        match self.connection.send(&ToZygote::Start(start), &[pidfd.as_fd(), stdout.as_fd(), stderr.as_fd()])
        {
            // It died at once. The reason is found below, where everything else is.
            Err(ChannelError::Io(Errno::PIPE | Errno::CONNRESET)) => {}
            other => other.map_err(channel_error)?,
        }
        loop {
            let Some(received) = self.next_message(executable, interrupt)? else {
                return Err(self.why_it_ended(executable).into());
            };
            match received.message {
                FromZygote::Derived { .. } => {}
                FromZygote::Hello { watchdog } => {
                    let (_, [pidfd, line]) = received
                        .with()
                        .inspect_err(|_| {
                            kill_unreaped(watchdog);
                            reap_unreaped(watchdog);
                        })
                        .map_err(channel_error)?;
                    self.watchdog = Some(Process::new(watchdog, pidfd));
                    self.line = Some(Channel::from(line));
                    self.errors = None;
                    self.importing = Some(String::new());
                }
                FromZygote::Importing { module } => self.importing = Some(module),
                FromZygote::Failed { summary, traceback } => {
                    return Err(StartError::Import { summary, traceback }.into());
                }
                FromZygote::HandOver => {
                    if !self.adopt(executable, interrupt)? {
                        return Err(self.why_it_ended(executable).into());
                    }
                }
                FromZygote::Ready { threads, no_memory_image } => {
                    let out_of_order = ProtocolError::OutOfOrder { waiting_for: "hello" };
                    let pid = self.process.as_ref().map(Process::pid).unwrap_or_default();
                    let data_bytes = data_bytes(pid)?;
                    let line = self.line.take().ok_or(out_of_order.clone())?;
                    let (Some(zygote), Some(watchdog)) = (self.process.take(), self.watchdog.take()) else {
                        return Err(out_of_order.into());
                    };
                    return Ok(Started {
                        zygote,
                        watchdog,
                        line,
                        threads,
                        memory_image,
                        no_memory_image,
                        data_bytes,
                    });
                }
                FromZygote::HandedOver { .. } => {
                    return Err(ProtocolError::OutOfOrder { waiting_for: "ready" }.into());
                }
            }
        }
    }

    /// Runs the interpreter. It knows of nothing but its socket, an empty standard input, and pipes to us for the rest.
    fn run(&mut self, options: &StartOptions, theirs: &Channel) -> Result<(), Error> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(Error::io("pipe"));
        let (empty, _) = pipe()?;
        let (errors, stderr) = pipe()?;
        let stdout = stderr.try_clone().map_err(|source| Error::Io { doing: "dup", source })?;
        let mut command = Command::new(&options.executable);
        // The kernel shows these bytes as the command line: room for the longest name, and for what marks it as set.
        let placeholder = ".".repeat(PROCESS_NAME_MAX);
        command.args(&options.arguments).arg(theirs.as_fd().as_raw_fd().to_string()).arg(placeholder);
        command.env_clear().envs(options.environment.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::from(empty)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
        isolate(&mut command, theirs.as_fd(), &options.executable);
        let mut child = command.spawn().map_err(|source| match source.raw_os_error() {
            Some(NO_IDS) => StartError::NoUserNamespace,
            _ => StartError::Execute { executable: options.executable.clone(), source },
        })?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH);
        // Nobody has reaped it: `child` does not when it is dropped, and it cannot have been waited for by number yet, or pidfd_open says so.
        let (pid, pidfd) = pid
            .and_then(|pid| Ok((pid, pidfd_open(pid, PidfdFlags::empty())?)))
            .inspect_err(|_| {
                let _ = child.kill().and_then(|()| child.wait());
            })
            .map_err(Error::io("pidfd_open"))?;
        self.process = Some(Process::new(pid.as_raw_nonzero().get(), pidfd));
        self.errors = Some(errors);
        Ok(())
    }

    /// Whether [`Self::await_clone`] has an answer within some seconds.
    pub(super) fn is_heard_within(&self, seconds: u64) -> bool {
        readable_within(self.connection.as_fd(), seconds)
    }

    /// Waits until a clone has said that it is there, or its zygote has. `false`: neither is.
    pub(super) fn await_clone(&mut self, interrupt: Interrupt<'_>) -> Result<bool, Error> {
        wait_for([self.connection.as_fd()], interrupt)?;
        let Some(received) = self.connection.recv().map_err(channel_error)? else { return Ok(false) };
        match received.message {
            FromZygote::Derived { pid } => {
                let (_, [pidfd]) = received
                    .with()
                    .inspect_err(|_| {
                        kill_unreaped(pid);
                        reap_unreaped(pid);
                    })
                    .map_err(channel_error)?;
                self.process = Some(Process::new(pid, pidfd));
                // It has no interpreter to start, and its standard error is the caller's.
                self.importing = Some(String::new());
                Ok(true)
            }
            FromZygote::Failed { summary, traceback } => {
                Err(StartError::Import { summary, traceback }.into())
            }
            _ => Err(ProtocolError::OutOfOrder { waiting_for: "a clone of the zygote" }.into()),
        }
    }

    /// `None` when the zygote has ended.
    fn next_message(
        &self,
        executable: &Path,
        interrupt: Interrupt<'_>,
    ) -> Result<Option<Received<FromZygote>>, Error> {
        wait_for([self.connection.as_fd()], interrupt)?;
        match self.connection.recv() {
            Err(ChannelError::Protocol(ProtocolError::Version { .. })) => {
                Err(StartError::Version { executable: executable.to_owned() }.into())
            }
            other => other.map_err(channel_error),
        }
    }

    /// Adopts the zygote's second generation: it is our grandchild, and becomes our child when the first ends. `false` when the first has
    /// ended without a successor.
    fn adopt(&mut self, executable: &Path, interrupt: Interrupt<'_>) -> Result<bool, Error> {
        let _turn = lock(&SUBREAPER);
        let was = child_subreaper().map_err(Error::io("prctl(PR_GET_CHILD_SUBREAPER)"))?;
        set_child_subreaper(Some(getpid())).map_err(Error::io("prctl(PR_SET_CHILD_SUBREAPER)"))?;
        let adopted = self.await_successor(executable, interrupt);
        set_child_subreaper(was).map_err(Error::io("prctl(PR_SET_CHILD_SUBREAPER)"))?;
        adopted
    }

    fn await_successor(&mut self, executable: &Path, interrupt: Interrupt<'_>) -> Result<bool, Error> {
        match self.connection.send(&ToZygote::Proceed, &[]) {
            // What ended it is found by the caller of this.
            Err(ChannelError::Io(Errno::PIPE | Errno::CONNRESET)) => return Ok(false),
            other => other.map_err(channel_error)?,
        }
        let received = loop {
            match self.next_message(executable, interrupt)? {
                Some(Received { message: FromZygote::Derived { .. }, .. }) => {}
                Some(received) => break received,
                None => return Ok(false),
            }
        };
        match received.message {
            FromZygote::Failed { summary, traceback } => {
                Err(StartError::Import { summary, traceback }.into())
            }
            FromZygote::HandedOver { pid } => {
                let (_, [pidfd]) = received.with().map_err(channel_error)?;
                let first = self.process.replace(Process::new(pid, pidfd));
                // It ends at once; and when it has, the second is ours.
                first.map(|first| first.reap());
                Ok(true)
            }
            _ => Err(ProtocolError::OutOfOrder { waiting_for: "handed over" }.into()),
        }
    }

    /// Why a zygote ended without a word.
    fn why_it_ended(&mut self, executable: &Path) -> StartError {
        let status =
            self.process.take().and_then(|process| process.end_within(CLOSE_PATIENCE)).unwrap_or(Status(0));
        match (self.importing.take(), self.errors.take()) {
            (Some(module), _) => StartError::DiedImporting { module, status },
            (None, errors) => {
                let mut stderr = Vec::new();
                if let Some(errors) = errors {
                    let _ = std::fs::File::from(errors).take(MAX_STDERR).read_to_end(&mut stderr);
                }
                StartError::Silent {
                    executable: executable.to_owned(),
                    status,
                    stderr: String::from_utf8_lossy(&stderr).into_owned(),
                }
            }
        }
    }
}

/// The private writable memory of a zygote; proc(5).
fn data_bytes(zygote: i32) -> Result<u64, Error> {
    let error = |source| Error::Io { doing: "reading the zygote's /proc/PID/status", source };
    let status = std::fs::read_to_string(format!("/proc/{zygote}/status")).map_err(error)?;
    let kibibytes =
        status.lines().find_map(|line| line.strip_prefix("VmData:")?.split_whitespace().next()?.parse().ok());
    kibibytes.map(|kibibytes: u64| kibibytes * 1024).ok_or_else(|| error(io::ErrorKind::InvalidData.into()))
}

/// The caller's own standard output or error, for the zygote to inherit; /dev/null where the caller has none.
fn own_output(number: i32) -> Result<OwnedFd, Error> {
    // The descriptor may be closed or replaced by the caller at any time: only its copy is ours.
    let copy = match number {
        1 => rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3),
        _ => rustix::io::fcntl_dupfd_cloexec(io::stderr(), 3),
    };
    copy.or_else(|_| rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()))
        .map_err(Error::io("open /dev/null"))
}
