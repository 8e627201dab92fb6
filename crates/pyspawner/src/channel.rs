//! One end of a `SOCK_SEQPACKET` socket pair that carries frames and descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, shutdown, socketpair,
    sockopt,
};

use crate::config::MAX_MOUNTS;
use crate::protocol::{self, Message, ProtocolError};

#[cfg(test)]
mod tests;

/// The most descriptors that any message has.
const MAX_DESCRIPTORS: usize = 2 * MAX_MOUNTS as usize + 1;

/// Why nothing came through a channel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error(transparent)]
    Io(#[from] Errno),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// What came through a channel.
#[derive(Debug)]
pub(crate) struct Received<M> {
    pub(crate) message: M,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// The kernel dropped descriptors: the receiver has none left (`EMFILE`).
    pub(crate) descriptors_lost: bool,
    /// The sender's pid, in the receiver's pid namespace; only on a channel that asked for it.
    pub(crate) sender: Option<i32>,
}

impl<M> Received<M> {
    /// The message with its `N` descriptors.
    ///
    /// # Errors
    ///
    /// `EMFILE` when the kernel dropped them.
    pub(crate) fn with<const N: usize>(self) -> Result<(M, [OwnedFd; N]), ChannelError> {
        let got = self.descriptors.len();
        match self.descriptors.try_into() {
            Ok(descriptors) => Ok((self.message, descriptors)),
            Err(_) if self.descriptors_lost => Err(Errno::MFILE.into()),
            Err(_) => Err(ProtocolError::DescriptorCount { expected: N, got }.into()),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Two ends, both close-on-exec.
    pub(crate) fn pair() -> rustix::io::Result<(Self, Self)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self { socket: ours }, Self { socket: theirs }))
    }

    /// The same end under a number that is no standard stream's.
    pub(crate) fn above_stdio(self) -> rustix::io::Result<Self> {
        Ok(Self { socket: rustix::io::fcntl_dupfd_cloexec(self.socket, 3)? })
    }

    /// Asks the kernel to add the sender's pid to every message.
    pub(crate) fn want_sender(&self) -> rustix::io::Result<()> {
        sockopt::set_socket_passcred(&self.socket, true)
    }

    /// Sends one message. An end that is gone is `EPIPE` or `ECONNRESET`, not a signal.
    pub(crate) fn send<M: Message>(
        &self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        self.send_with(message, descriptors, SendFlags::NOSIGNAL)
    }

    /// The same, or `EAGAIN` where it would wait because the other end has too much unread.
    pub(crate) fn try_send<M: Message>(
        &self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        self.send_with(message, descriptors, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
    }

    fn send_with<M: Message>(
        &self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
        flags: SendFlags,
    ) -> Result<(), ChannelError> {
        protocol::check_descriptors(message, descriptors.len())?;
        let frame = protocol::encode(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        retry_on_intr(|| sendmsg(&self.socket, &[IoSlice::new(&frame)], &mut ancillary, flags))?;
        Ok(())
    }

    /// Waits for one message; `None` at end of file. A descriptor that arrives is close-on-exec.
    pub(crate) fn recv<M: Message>(&self) -> Result<Option<Received<M>>, ChannelError> {
        let length = despite_reset(|| self.next_length())?;
        let mut frame = vec![0; length.min(M::MAX_FRAME)];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 1), ScmCredentials(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = despite_reset(|| {
            let mut parts = [IoSliceMut::new(&mut frame)];
            recvmsg(&self.socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        })?;
        let mut descriptors = Vec::new();
        let mut sender = None;
        for item in ancillary.drain() {
            match item {
                RecvAncillaryMessage::ScmRights(rights) => descriptors.extend(rights),
                RecvAncillaryMessage::ScmCredentials(credentials) => {
                    sender = Some(credentials.pid.as_raw_nonzero().get());
                }
                _ => {}
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if length > M::MAX_FRAME {
            return Err(ProtocolError::Oversized { length, limit: M::MAX_FRAME }.into());
        }
        let message = protocol::decode::<M>(&frame[..received.bytes])?;
        let descriptors_lost = received.flags.contains(ReturnFlags::CTRUNC);
        if !descriptors_lost {
            protocol::check_descriptors(&message, descriptors.len())?;
        } else if descriptors.len() >= message.descriptors() {
            // Not for want of descriptors: there were more than belong to the message.
            protocol::check_descriptors(&message, descriptors.len() + 1)?;
        }
        Ok(Some(Received { message, descriptors, descriptors_lost, sender }))
    }

    /// Waits for a message and tells its length: a buffer for the longest that there may be would cost a newborn child more than most of
    /// its sandbox.
    fn next_length(&self) -> rustix::io::Result<usize> {
        let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
        let mut nothing: [u8; 0] = [];
        recv(&self.socket, &mut nothing, flags).map(|(_, length)| length)
    }

    /// Takes a message out of the queue of this end unread, with its descriptors. `false`: there is none.
    pub(crate) fn take_back(&self) -> rustix::io::Result<bool> {
        let mut nothing: [u8; 0] = [];
        match retry_on_intr(|| recv(&self.socket, &mut nothing, RecvFlags::DONTWAIT | RecvFlags::TRUNC)) {
            Ok((_, length)) => Ok(length > 0),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Ends the conversation for every process that holds this end: the other one reads what is queued, then end of file.
    pub(crate) fn shut_down(&self) {
        let _ = shutdown(&self.socket, rustix::net::Shutdown::Write);
    }
}

/// Receives once more where the other end was closed with our messages still unread, at whatever moment. The kernel tells that once,
/// before what the other end has sent itself, and the end.
fn despite_reset<T>(mut receive: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    match retry_on_intr(&mut receive) {
        Err(Errno::CONNRESET) => retry_on_intr(receive),
        received => received,
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}
