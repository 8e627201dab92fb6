//! The names of the sandbox's layers. `sandbox/mod.rs` says how each is applied and why in this order.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One layer of the sandbox, in the order in which a child passes through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Layer {
    /// New user, pid, mount, net, ipc, uts and cgroup namespaces: one `clone3`.
    Namespaces,
    /// A cgroup of its own, with limits of memory, processes and CPU; none where the host gives none.
    Cgroup,
    /// An own range of 65,536 host uids and gids.
    IdMap,
    /// A veth pair, or only a `lo` that is down.
    Network,
    /// What the child sees of the filesystem.
    Mounts,
    /// Own session, no controlling terminal, empty session keyring, no core dumps.
    Session,
    /// All five capability sets empty, securebits locked.
    DropCapabilities,
    /// Uid and gid 1000.
    Setuid,
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivs,
    /// The same doors as `Mounts`, locked once more: Landlock rules.
    Landlock,
    /// Limits of each process; setrlimit(2).
    Rlimits,
    /// The system-call filter.
    Seccomp,
}

impl Layer {
    /// All of them, in order.
    pub const ALL: [Self; 12] = [
        Self::Namespaces,
        Self::Cgroup,
        Self::IdMap,
        Self::Network,
        Self::Mounts,
        Self::Session,
        Self::DropCapabilities,
        Self::Setuid,
        Self::NoNewPrivs,
        Self::Landlock,
        Self::Rlimits,
        Self::Seccomp,
    ];

    /// The layer's name as users write it (`skip_sandbox_except`) and read it (`SandboxError.layer`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Cgroup => "cgroup",
            Self::IdMap => "id_map",
            Self::Network => "network",
            Self::Mounts => "mounts",
            Self::Session => "session",
            Self::DropCapabilities => "drop_capabilities",
            Self::Setuid => "setuid",
            Self::NoNewPrivs => "no_new_privs",
            Self::Landlock => "landlock",
            Self::Rlimits => "rlimits",
            Self::Seccomp => "seccomp",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
