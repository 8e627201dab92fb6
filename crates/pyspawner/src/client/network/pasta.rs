//! The program `pasta`, which moves packets between a child's network namespace and sockets of the caller's user: a network for those who may
//! set up nothing on the host. See <https://passt.top>.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::client::companions::Companions;
use crate::client::{Interrupt, wait_for};
use crate::error::{Error, NetworkError};
use crate::protocol::ChildAddress;

use super::program::find;

/// The most of what it says that goes into an exception, in bytes.
const MAX_SAID: u64 = 4096;

/// Of the gateway, which is nobody. Locally administered.
const GATEWAY: &str = "02:70:73:70:00:01";

/// A program that is there.
#[derive(Debug)]
pub(super) struct Pasta {
    program: PathBuf,
}

impl Pasta {
    pub(super) fn find() -> Result<Self, NetworkError> {
        Ok(Self { program: find("pasta").ok_or(NetworkError::NoPasta)? })
    }

    /// Gives a child that has no address yet an interface behind which everything is. It is there when this returns, and goes with the child.
    pub(super) fn connect(
        &self,
        (pid, pidfd): (i32, BorrowedFd<'_>),
        interface: &str,
        addresses: &[ChildAddress],
        companions: &Companions,
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(Error::io("pipe"));
        let ((ready, stdout), (errors, stderr)) = (pipe()?, pipe()?);
        companions.run(&self.program, arguments(pid, interface, addresses), pidfd, [stdout, stderr])?;
        wait_for([ready.as_fd()], interrupt)?;
        // It writes its pid when it is ready. At the end of file it has ended.
        if matches!(rustix::io::read(&ready, &mut [0; 1]), Ok(1)) {
            return Ok(());
        }
        Err(NetworkError::Pasta { said: said(errors) }.into())
    }
}

fn arguments(pid: i32, interface: &str, addresses: &[ChildAddress]) -> Vec<String> {
    let mut arguments: Vec<String> = [
        // It is the watchdog's, who kills it.
        "--foreground",
        "--quiet",
        // A pipe to the caller.
        "--pid",
        "/proc/self/fd/1",
        // Nothing from the host to the child, nor back.
        "--tcp-ports=none",
        "--udp-ports=none",
        "--tcp-ns=none",
        "--udp-ns=none",
        // The gateway is not another name for the host's loopback.
        "--no-map-gw",
        // The child knows its addresses.
        "--no-dhcp",
        "--no-dhcpv6",
        "--no-ra",
        "--mac-addr",
        GATEWAY,
        "--ns-ifname",
        interface,
    ]
    .map(str::to_owned)
    .into();
    for ChildAddress { address, gateway } in addresses {
        arguments.push(format!("--address={}", address.addr()));
        arguments.push(format!("--gateway={gateway}"));
        if gateway.is_ipv4() {
            arguments.push(format!("--netmask={}", address.prefix_len()));
        }
    }
    if addresses.iter().all(|end| end.gateway.is_ipv4()) {
        arguments.push("--ipv4-only".to_owned());
    }
    arguments.push(format!("--userns=/proc/{pid}/ns/user"));
    arguments.push(format!("--netns=/proc/{pid}/ns/net"));
    arguments
}

/// What is left in a pipe.
fn said(errors: OwnedFd) -> String {
    // Nothing keeps this from coming to an end but another process that has the pipe, and there is none that matters.
    let _ = fcntl_setfl(&errors, OFlags::NONBLOCK);
    let mut said = Vec::new();
    let _ = File::from(errors).take(MAX_SAID).read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    // A host without a system log is not what it is about.
    let lines: Vec<_> = said.lines().filter(|line| !line.ends_with("to syslog")).collect();
    if lines.is_empty() { "it has ended without a word".to_owned() } else { lines.join("; ") }
}
