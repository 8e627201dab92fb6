//! What a child gets beside its sandbox: its standard streams, and the args.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Gid, MemfdFlags, SealFlags, Uid, fchown, fcntl_add_seals, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};

use super::child::Pipes;
use crate::error::Error;

/// What the child gets beside its sandbox.
pub(super) struct ChildDescriptors {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    args: OwnedFd,
}

impl ChildDescriptors {
    /// Everything that can fail for want of descriptors or memory, before anybody is asked for anything.
    pub(super) fn make(args: &[u8]) -> Result<(Self, Pipes), Error> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(Error::io("pipe"));
        let ((stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr)) = (pipe()?, pipe()?, pipe()?);
        let descriptors = Self { stdin, stdout, stderr, args: sealed(args)? };
        Ok((descriptors, Pipes { stdin: our_stdin, stdout: our_stdout, stderr: our_stderr }))
    }

    /// All of them, in the order in which they are sent.
    pub(super) fn all(&self) -> [BorrowedFd<'_>; 4] {
        [self.stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd(), self.args.as_fd()]
    }

    /// Makes the pipes the child's own, so that it can open `/dev/stdout` and its like. A caller that may not do so can still spawn: the
    /// open descriptors themselves work for anybody.
    pub(super) fn give_to(&self, id: u32) {
        for pipe in [&self.stdin, &self.stdout, &self.stderr] {
            let _ = fchown(pipe, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)));
        }
    }
}

/// A memfd with `bytes` that nobody can change any more; `memfd_create(2)`.
fn sealed(bytes: &[u8]) -> Result<OwnedFd, Error> {
    let memfd = memfd_create("pyspawner-args", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(Error::io("memfd_create"))?;
    let file = File::from(memfd);
    // Whoever reads it begins at its start.
    file.write_all_at(bytes, 0).map_err(|source| Error::Io { doing: "writing the args", source })?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
        .map_err(Error::io("sealing the args"))?;
    Ok(file.into())
}
