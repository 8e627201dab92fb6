//! A child from its first input to its end: feeds it, reads what it writes, and reaps it. However much it writes, however long it takes and
//! whatever it leaves open, the caller gets it back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ioctl_fionread, read, retry_on_intr, write};

use super::child::{Child, Ended};
use super::{Interrupt, readable_within};
use crate::error::Error;
use crate::sys::kernel::without_sigpipe;

/// What a pipe holds, mostly.
const CHUNK: usize = 64 * 1024;

/// How long to wait at most before `interrupt` is asked: a signal that comes just before poll(2) does not interrupt it.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(100);

/// How long to leave a child alone that has ended and cannot be reaped yet.
const PAUSE: Duration = Duration::from_millis(1);

/// How long a child may take to die of SIGKILL.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);

/// What is said to a child, and how much is heard.
#[derive(Clone, Copy, Debug)]
pub struct Conversation<'a> {
    /// For its standard input, which is closed after it.
    pub input: &'a [u8],
    /// After this long it is killed.
    pub timeout: Option<Duration>,
    /// How many bytes of each of standard output and error to keep. The rest is read and dropped.
    pub max_output: usize,
    /// What has been read already: it counts.
    pub already_read: [&'a [u8]; 2],
}

/// What became of a child.
#[derive(Debug)]
pub struct Completed {
    /// How it ended.
    pub ended: Ended,
    /// What it wrote on standard output and error.
    pub outputs: [Output; 2],
}

/// What a child wrote on one pipe.
#[derive(Debug, Default)]
pub struct Output {
    /// Its beginning.
    pub kept: Vec<u8>,
    /// How many bytes came after it.
    pub dropped: u64,
}

impl Output {
    fn add(&mut self, bytes: &[u8], max: usize) {
        let room = max.saturating_sub(self.kept.len()).min(bytes.len());
        self.kept.extend_from_slice(&bytes[..room]);
        self.dropped += (bytes.len() - room) as u64;
    }
}

impl Child {
    /// Feeds the child, reads both pipes until it has ended, kills it at the timeout, reaps it, and closes the pipes.
    ///
    /// What its descendants write after its end is not waited for. With namespaces, there are none then.
    ///
    /// # Errors
    ///
    /// `ECHILD` when it was reaped by other means than this object; whatever `interrupt` answers when a signal comes. After any error the
    /// child is killed and reaped.
    pub fn communicate(
        &self,
        pipes: OptionalPipes,
        conversation: &Conversation<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<Completed, Error> {
        let talked = Talk::new(self, pipes, conversation).and_then(|talk| talk.until_the_end(interrupt));
        if talked.is_err() {
            self.end_within(DEATH_PATIENCE);
        }
        talked
    }

    /// Kills and reaps it, if that can be done.
    fn end_within(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        // One that has been reaped is as good as killed.
        if self.kill().is_ok() {
            while matches!(self.poll(), Ok(None)) && Instant::now() < deadline {
                readable_within(self.pidfd(), 1);
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Those of a child's pipes that the caller has not closed.
#[derive(Debug)]
pub struct OptionalPipes {
    /// To write.
    pub stdin: Option<OwnedFd>,
    /// To read: standard output and error.
    pub outputs: [Option<OwnedFd>; 2],
}

struct Talk<'a> {
    child: &'a Child,
    stdin: Option<OwnedFd>,
    unsaid: &'a [u8],
    readers: [Option<OwnedFd>; 2],
    outputs: [Output; 2],
    max_output: usize,
    deadline: Option<Instant>,
    ask_at: Instant,
    chunk: Vec<u8>,
}

impl<'a> Talk<'a> {
    fn new(child: &'a Child, pipes: OptionalPipes, conversation: &Conversation<'a>) -> Result<Self, Error> {
        let OptionalPipes { stdin, outputs: readers } = pipes;
        for pipe in readers.iter().chain([&stdin]).flatten() {
            fcntl_getfl(pipe)
                .and_then(|flags| fcntl_setfl(pipe, flags | OFlags::NONBLOCK))
                .map_err(Error::io("fcntl"))?;
        }
        let outputs = conversation.already_read.map(|bytes| {
            let mut output = Output::default();
            output.add(bytes, conversation.max_output);
            output
        });
        Ok(Self {
            child,
            // Without input, its end comes at once.
            stdin: stdin.filter(|_| !conversation.input.is_empty()),
            unsaid: conversation.input,
            readers,
            outputs,
            max_output: conversation.max_output,
            // A time that the clock cannot hold never comes.
            deadline: conversation.timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            ask_at: Instant::now() + INTERRUPT_INTERVAL,
            chunk: vec![0; CHUNK],
        })
    }

    fn until_the_end(mut self, interrupt: Interrupt<'_>) -> Result<Completed, Error> {
        loop {
            let [stdin, stdout, stderr, ended] = self.wait()?;
            if stdin {
                self.feed();
            }
            if ended {
                if let Some(ended) = self.child.poll()? {
                    self.read_the_rest();
                    return Ok(Completed { ended, outputs: self.outputs });
                }
                // Whoever traces it has to let it go first.
                std::thread::sleep(PAUSE);
            }
            for (index, ready) in [stdout, stderr].into_iter().enumerate() {
                if ready {
                    self.read_some(index, CHUNK);
                }
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.deadline = None;
                self.child.time_out();
                match self.child.kill() {
                    // One that has been reaped by others is found out above.
                    Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {}
                    killed => killed?,
                }
            }
            // Also where there is always something to read. After the deadline, because it may wait for a lock of the caller's.
            if Instant::now() >= self.ask_at {
                interrupt()?;
                self.ask_at = Instant::now() + INTERRUPT_INTERVAL;
            }
        }
    }

    /// Which of standard input, output and error are ready, and whether the child has ended.
    fn wait(&mut self) -> Result<[bool; 4], Error> {
        let descriptors: [Option<BorrowedFd<'_>>; 4] = [
            self.stdin.as_ref().map(AsFd::as_fd),
            self.readers[0].as_ref().map(AsFd::as_fd),
            self.readers[1].as_ref().map(AsFd::as_fd),
            Some(self.child.pidfd()),
        ];
        let flags = [PollFlags::OUT, PollFlags::IN, PollFlags::IN, PollFlags::IN];
        let mut polled: Vec<PollFd<'_>> = descriptors
            .iter()
            .zip(flags)
            .filter_map(|(descriptor, flags)| {
                descriptor.map(|descriptor| PollFd::from_borrowed_fd(descriptor, flags))
            })
            .collect();
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let patience = left.unwrap_or(INTERRUPT_INTERVAL).min(INTERRUPT_INTERVAL);
        match poll(&mut polled, Some(&Timespec::try_from(patience).unwrap_or_default())) {
            Ok(_) => {}
            Err(Errno::INTR) => {
                self.ask_at = Instant::now();
                return Ok([false; 4]);
            }
            Err(errno) => return Err(Error::io("poll")(errno)),
        }
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        Ok(descriptors.map(|descriptor| descriptor.is_some() && ready.next().unwrap_or_default()))
    }

    /// A child that does not read, or has closed its end, gets no more.
    fn feed(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        match without_sigpipe(|| retry_on_intr(|| write(stdin, self.unsaid))) {
            Ok(written) => self.unsaid = &self.unsaid[written..],
            Err(Errno::AGAIN) => return,
            Err(_) => self.unsaid = &[],
        }
        if self.unsaid.is_empty() {
            self.stdin = None;
        }
    }

    /// At most `most` bytes. Answers how many; none at the end of the file, or when there is nothing now.
    fn read_some(&mut self, index: usize, most: usize) -> usize {
        let Some(reader) = &self.readers[index] else { return 0 };
        let most = most.min(self.chunk.len());
        match retry_on_intr(|| read(reader, &mut self.chunk[..most])) {
            Err(Errno::AGAIN) => 0,
            Ok(0) | Err(_) => {
                self.readers[index] = None;
                0
            }
            Ok(length) => {
                self.outputs[index].add(&self.chunk[..length], self.max_output);
                length
            }
        }
    }

    /// Everything that it has written lies in the pipes. What comes after that is somebody else's.
    fn read_the_rest(&mut self) {
        for index in [0, 1] {
            let mut left = self.readers[index].as_ref().and_then(|reader| ioctl_fionread(reader).ok());
            while let Some(length @ 1..) = left {
                let read = self.read_some(index, usize::try_from(length).unwrap_or(CHUNK));
                left = if read == 0 { None } else { length.checked_sub(read as u64) };
            }
        }
    }
}
