//! The table of mounts, as `proc_pid_mountinfo(5)` has it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::mount::MountFlags;

/// A flag of mount(2) since Linux 5.10 that rustix does not name.
const MS_NOSYMFOLLOW: u32 = 0x100;

/// One mount.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) path: PathBuf,
    /// Those that a remount would forget if they were not repeated.
    pub(crate) flags: MountFlags,
    /// The type of its filesystem.
    pub(crate) kind: Vec<u8>,
}

/// Every mount, in the table's order.
pub(crate) fn all(table: &[u8]) -> impl Iterator<Item = Mount> {
    table.split(|byte| *byte == b'\n').filter_map(entry).map(|(.., mount)| mount)
}

/// The mount of this id and all that are mounted in it.
pub(super) fn below(id: u32, table: &[u8]) -> Vec<Mount> {
    let mut wanted = BTreeSet::from([id]);
    // A mount is in the table after its parent only as a rule: moved ones are not. So until nothing is found any more.
    loop {
        let before = wanted.len();
        for (id, parent, _) in table.split(|byte| *byte == b'\n').filter_map(entry) {
            if wanted.contains(&parent) {
                wanted.insert(id);
            }
        }
        if wanted.len() == before {
            break;
        }
    }
    let entries = table.split(|byte| *byte == b'\n').filter_map(entry);
    entries.filter(|(id, ..)| wanted.contains(id)).map(|(.., mount)| mount).collect()
}

/// The id, the parent's id, and the mount.
fn entry(line: &[u8]) -> Option<(u32, u32, Mount)> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let number = |index: usize| std::str::from_utf8(fields.get(index)?).ok()?.parse().ok();
    let path = PathBuf::from(OsString::from_vec(unescaped(fields.get(4)?)));
    let mut flags = MountFlags::empty();
    for option in fields.get(5)?.split(|byte| *byte == b',') {
        match option {
            b"noexec" => flags |= MountFlags::NOEXEC,
            b"nosymfollow" => flags |= MountFlags::from_bits_retain(MS_NOSYMFOLLOW),
            _ => {}
        }
    }
    // The number of fields before the dash varies.
    let kind = fields.iter().skip_while(|field| **field != b"-").nth(1)?.to_vec();
    Some((number(0)?, number(1)?, Mount { path, flags, kind }))
}

/// Space, tab, newline and backslash stand as `\` and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => bytes.push(*first),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
90 91 0:9 / /proc/deep rw,noexec,nosuid - tmpfs none rw
91 22 254:0 /srv /proc rw,relatime shared:7 - ext4 /dev/vda rw
92 91 0:8 / /proc/a\\040name ro,nodev - tmpfs none rw
93 22 0:7 / /proc/covered rw - binfmt_misc none rw
";

    #[test]
    fn what_is_mounted_in_a_mount_is_found_and_what_it_covers_is_not() {
        let paths: Vec<_> = below(91, TABLE).into_iter().map(|mount| mount.path).collect();
        assert_eq!(paths, ["/proc/deep", "/proc", "/proc/a name"].map(PathBuf::from));
    }

    #[test]
    fn the_type_is_what_comes_after_the_dash() {
        let kinds: Vec<_> =
            all(TABLE).map(|mount| String::from_utf8_lossy(&mount.kind).into_owned()).collect();
        assert_eq!(kinds, ["proc", "ext4", "tmpfs", "ext4", "tmpfs", "binfmt_misc"]);
    }

    #[test]
    fn noexec_is_kept() {
        let noexec: Vec<_> =
            below(91, TABLE).iter().map(|mount| mount.flags.contains(MountFlags::NOEXEC)).collect();
        assert_eq!(noexec, [true, false, false]);
    }

    #[test]
    fn a_line_that_is_none_is_passed_over() {
        assert_eq!(below(1, b"\nnonsense\n1 x\n"), []);
    }

    #[test]
    fn a_backslash_that_escapes_nothing_stays() {
        assert_eq!(unescaped(b"a\\134b\\9\\04"), b"a\\b\\9\\04");
    }
}
