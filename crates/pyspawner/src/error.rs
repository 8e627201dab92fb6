//! What can go wrong, as types. Nothing here is a bare string: a failure names its layer and its step, and
//! travels from the child to the caller as data.

use std::fmt;
use std::io;

use crate::config::ConfigError;
pub(crate) use crate::failure::FailAt;
pub use crate::failure::{Failure, Step};
use crate::protocol::ProtocolError;

/// Why the zygote did not start. No process is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The executable could not be run.
    #[error("cannot run the executable {executable:?}: {source}")]
    Execute {
        /// The executable as it was given.
        executable: std::path::PathBuf,
        /// What execve(2) or fork(2) said.
        source: io::Error,
    },
    /// Rootless, and the host gives an ordinary user's namespaces no ids.
    #[error(
        "an ordinary user may make user namespaces here and not use them: see the sysctl kernel.apparmor_restrict_unprivileged_userns, or run \
         as root"
    )]
    NoUserNamespace,
    /// The interpreter ended before it spoke to us: it is no Python, or has no pyspawner.
    #[error(
        "{executable:?} ended before the zygote was up ({status}); is it a Python, and is pyspawner installed in it?{}",
        indented(stderr)
    )]
    Silent {
        /// The executable as it was given.
        executable: std::path::PathBuf,
        /// How it ended.
        status: Status,
        /// What it wrote on its standard error.
        stderr: String,
    },
    /// The zygote runs another version of pyspawner.
    #[error(
        "{executable:?} has another version of pyspawner than the caller: install the same version in both"
    )]
    Version {
        /// The executable as it was given.
        executable: std::path::PathBuf,
    },
    /// An import failed, or `child_main` is not what it should be.
    #[error("{summary}{}", indented(traceback))]
    Import {
        /// One line for people.
        summary: String,
        /// The zygote's own traceback.
        traceback: String,
    },
    /// The zygote died while it imported `module`.
    #[error("the zygote died {} ({status})", during(module))]
    DiedImporting {
        /// The module whose import was under way; empty before the first.
        module: String,
        /// How it ended.
        status: Status,
    },
}

fn during(module: &str) -> String {
    if module.is_empty() { "at its start".to_owned() } else { format!("while it imported {module:?}") }
}

fn indented(text: &str) -> String {
    text.trim_end().lines().fold(String::new(), |all, line| all + "\n    " + line)
}

/// How a process ended, as wait(2) encodes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub i32);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 & 0x7f {
            0 => write!(f, "exit code {}", (self.0 >> 8) & 0xff),
            signal => write!(f, "killed by signal {signal}"),
        }
    }
}

/// Why a child cannot have its managed network. Nothing was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// IPv4 packets end at the host.
    #[error("the host does not forward IPv4")]
    NotForwarding,
    /// IPv6 packets do.
    #[error("the host does not forward IPv6")]
    NotForwardingV6,
    /// There is no program `nft`.
    #[error("there is no program nft, which sets up the firewall")]
    NoNft,
    /// The program refused.
    #[error("nft refused: {said}")]
    Nft {
        /// What it wrote on its standard error.
        said: String,
    },
    /// There is no program `pasta`.
    #[error("there is no program pasta, without which only root can give a child a network")]
    NoPasta,
    /// The program ended.
    #[error("pasta refused: {said}")]
    Pasta {
        /// What it wrote on its standard error.
        said: String,
    },
    /// All of the pool is taken by other Clients, or in use on this host.
    #[error("no addresses are left in {pool}: other Clients have them{}", clash.map_or_else(String::new, |route| format!(", or the host's route to {route} leads there")))]
    NoSubnet {
        /// The pool.
        pool: String,
        /// A route of the host's that leads into it.
        clash: Option<ipnet::IpNet>,
    },
    /// As many children live as there are addresses for.
    #[error("all {children} networks in {pool} are taken by children that live")]
    Exhausted {
        /// What the Client has of the pool.
        pool: String,
        /// How many that is.
        children: usize,
    },
    /// A name that has no address.
    #[error("cannot look up {name:?}: {reason}")]
    Resolve {
        /// The name.
        name: String,
        /// What the resolver said.
        reason: String,
    },
    /// A name that leads to where a name may not lead.
    #[error("{name:?} is {address}, which is not a public address")]
    NotPublic {
        /// The name.
        name: String,
        /// Its address.
        address: std::net::IpAddr,
    },
    /// None of the host's resolvers can be reached by a child.
    #[error("the host has no resolver that a child could reach{}", listed(found))]
    NoResolver {
        /// Those that it has.
        found: Vec<std::net::IpAddr>,
    },
}

impl NetworkError {
    /// The errno(3) that says it best.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotForwarding | Self::NotForwardingV6 => libc::ENETUNREACH,
            Self::NoNft | Self::NoPasta => libc::ENOENT,
            Self::Nft { said } if said.contains("Operation not permitted") => libc::EPERM,
            Self::Nft { .. } | Self::Pasta { .. } => libc::EIO,
            Self::NoSubnet { .. } => libc::EADDRNOTAVAIL,
            Self::Exhausted { .. } => libc::EAGAIN,
            Self::Resolve { .. } | Self::NoResolver { .. } => libc::EHOSTUNREACH,
            Self::NotPublic { .. } => libc::EACCES,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotForwarding => {
                "sysctl -w net.ipv4.ip_forward=1. In Docker: --sysctl net.ipv4.ip_forward=1"
            }
            Self::NotForwardingV6 => {
                "sysctl -w net.ipv6.conf.all.forwarding=1, or NetworkConfig.managed(ipv6=False)"
            }
            Self::NoNft => "install nftables: apt-get install nftables",
            Self::Nft { .. } => {
                "it needs CAP_NET_ADMIN, a kernel with nftables, and its modules nf_tables, nft_fib_inet, nft_masq and nft_ct"
            }
            Self::NoPasta => "install passt: apt-get install passt",
            Self::Pasta { said } if said.contains("tun") => {
                "everybody needs /dev/net/tun: modprobe tun; chmod 666 /dev/net/tun. In Docker: --device /dev/net/tun"
            }
            Self::Pasta { .. } => {
                "it needs a default route, and namespaces that an ordinary user may enter: try pasta --config-net ip address"
            }
            Self::NoSubnet { .. } => "choose other networks: NetworkConfig.managed(subnet=..., subnet6=...)",
            Self::Exhausted { .. } => "let a child end first, or make another Client",
            Self::Resolve { .. } => "the names of allow and deny are looked up by the caller, at every spawn",
            Self::NotPublic { .. } => "if that is meant, give the address in place of the name",
            Self::NoResolver { .. } => {
                "choose one: NetworkConfig.managed(dns=(\"9.9.9.9\",)), or dns=() for none"
            }
        }
    }
}

fn listed(addresses: &[std::net::IpAddr]) -> String {
    let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    if all.is_empty() { String::new() } else { format!(": it has {}", all.join(", ")) }
}

/// Everything that [`crate::client`] can answer with instead of a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration makes no sense; nothing was made.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The zygote did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The zygote has died.
    #[error("the zygote (pid {pid}) has died ({}): make a new Client", status.map_or_else(|| "somebody else reaped it".to_owned(), |status| status.to_string()))]
    ZygoteDied {
        /// The zygote's pid.
        pid: i32,
        /// How it ended, when we were the ones to reap it.
        status: Option<Status>,
    },
    /// A layer could not be applied.
    #[error(transparent)]
    Sandbox(#[from] Failure),
    /// A managed network is not possible as it is.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A parked child could not get ready.
    #[error("a child could not be warmed up: {summary}")]
    WarmUp {
        /// One line for people.
        summary: String,
    },
    /// The Client is closed.
    #[error("the Client is closed")]
    Closed,
    /// The Client belongs to another process.
    #[error(
        "this Client was made by process {owner} and cannot be used in process {here}: make a Client after the fork"
    )]
    Forked {
        /// The process that made it.
        owner: u32,
        /// The process that used it.
        here: u32,
    },
    /// The caller's own system calls failed, for example for want of descriptors.
    #[error("{doing}: {source}")]
    Io {
        /// What the caller was doing.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The other end does not speak our protocol.
    #[error("protocol error: {0}")]
    Protocol(#[from] ProtocolError),
    /// A signal handler of the caller raised: the operation was given up and cleaned up.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { doing, source: errno.into() }
    }
}
