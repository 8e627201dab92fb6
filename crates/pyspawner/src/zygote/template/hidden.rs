//! What children never see, whatever its permissions.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::sandbox::mounts::Masked;

/// Directories of which every child has an own, empty one.
pub(super) const PRIVATE: [&str; 2] = ["/tmp", "/var/tmp"];

/// Sockets of services (Docker, D-Bus) and secrets (Kubernetes' service account), the kernel's own settings, other filesystems, homes.
const EMPTY: [&str; 7] = ["/run", "/var/run", "/sys", "/mnt", "/media", "/home", "/root"];

/// Directories that are nobody's home, whatever passwd(5) says: nobody's secrets are there, and much that programs need.
const SYSTEM: [&str; 17] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/opt",
    "/proc",
    "/srv",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local",
    "/usr/sbin",
    "/var",
];

/// Uids of people, as distributions have it; `nobody` is none.
const PEOPLE: std::ops::Range<u32> = 1000..65_534;

/// Files and directories of `/proc` that tell of the host or of other users.
const MASKED_IN_PROC: [&str; 10] = [
    "acpi",
    "asound",
    "kcore",
    "key-users",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "sysrq-trigger",
    "timer_list",
];

/// The directories to cover, those that there are, where they really are: a link to one is as empty as that one then. Among them is the home
/// of `user`, whose files a child without an id of its own may read.
pub(super) fn directories(user: u32) -> BTreeSet<PathBuf> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    EMPTY.iter().chain(&PRIVATE).map(PathBuf::from).chain(homes(&passwd, user)).filter_map(real).collect()
}

/// The directories of which every child has an own one.
pub(super) fn private() -> BTreeSet<PathBuf> {
    PRIVATE.iter().map(PathBuf::from).filter_map(real).collect()
}

/// The homes of people and of `user`, in a table like passwd(5).
fn homes(passwd: &str, user: u32) -> impl Iterator<Item = PathBuf> {
    passwd.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split(':').collect();
        let uid: u32 = fields.get(2)?.parse().ok()?;
        let home = PathBuf::from(*fields.get(5)?);
        ((PEOPLE.contains(&uid) || uid == user) && home.is_absolute()).then_some(home)
    })
}

/// The directory that this path leads to, if it is one and may be hidden.
fn real(path: PathBuf) -> Option<PathBuf> {
    let path = fs::canonicalize(path).ok()?;
    let is_system = SYSTEM.iter().any(|system| path == Path::new(system));
    (path.is_dir() && !is_system).then_some(path)
}

/// Those that this kernel has, and shows to others than its root, who is nobody in a child.
pub(super) fn masked_in_proc() -> Vec<Masked> {
    let masked = MASKED_IN_PROC.iter().filter_map(|name| {
        let metadata = fs::metadata(Path::new("/proc").join(name)).ok()?;
        let is_shown = metadata.permissions().mode() & 0o004 != 0;
        let name = CString::new(*name).ok()?;
        is_shown.then_some(Masked { name, is_directory: metadata.is_dir() })
    });
    masked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_needs_is_no_home() {
        for path in ["/", "/usr/", "/usr/../usr", "/etc/.", "/missing"] {
            assert_eq!(real(PathBuf::from(path)), None, "{path}");
        }
        assert_eq!(real(PathBuf::from("/usr/share/")), Some(PathBuf::from("/usr/share")));
    }

    #[test]
    fn homes_are_those_of_people_and_of_the_user() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33::/var/www:/bin/sh\nann:x:1000:1000:A:/data/ann:/bin/sh\n\
                      app:x:1001:1001::none:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\nbroken\n";
        assert_eq!(
            homes(passwd, 0).collect::<Vec<_>>(),
            [PathBuf::from("/root"), PathBuf::from("/data/ann")]
        );
        assert_eq!(
            homes(passwd, 33).collect::<Vec<_>>(),
            [PathBuf::from("/var/www"), PathBuf::from("/data/ann")]
        );
    }
}
