//! What is mapped into this process: `proc_pid_smaps(5)`.

use std::fs;
use std::io;
use std::ops::Range;

/// A mapping of this process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: usize,
    pub(super) length: usize,
    pub(super) protection: i32,
    /// Where it begins in its file.
    pub(super) offset: u64,
    pub(super) inode: u64,
    /// The file's path, or what the kernel calls the memory. Mostly empty.
    pub(super) name: String,
    /// Of no file.
    pub(super) is_anonymous: bool,
    /// Pages of it need a right of the thread's own, beside `protection`; pkeys(7).
    pub(super) has_key: bool,
    flags: String,
}

impl Mapping {
    /// The first line of an entry: address range, permissions, offset, device, inode, name.
    pub(super) fn of_line(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        let start = address(start)?;
        let length = address(end)?.checked_sub(start)?;
        let permissions = fields.next()?;
        let protection = [('r', libc::PROT_READ), ('w', libc::PROT_WRITE), ('x', libc::PROT_EXEC)]
            .into_iter()
            .filter(|(letter, _)| permissions.contains(*letter))
            .fold(libc::PROT_NONE, |all, (_, one)| all | one);
        let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        let name = fields.collect::<Vec<_>>().join(" ");
        Some(Self {
            start,
            length,
            protection,
            offset,
            inode,
            name,
            is_anonymous: inode == 0,
            ..Self::default()
        })
    }

    /// Whether the kernel shows a flag of two letters, as in the man page.
    pub(super) fn has(&self, flag: &str) -> bool {
        self.flags.split_ascii_whitespace().any(|shown| shown == flag)
    }

    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.start + self.length
    }

    pub(super) fn is_writable(&self) -> bool {
        self.protection & libc::PROT_WRITE != 0
    }
}

/// All of them, in the order of their addresses.
pub(super) fn read() -> io::Result<Vec<Mapping>> {
    Ok(in_table(&String::from_utf8_lossy(&fs::read("/proc/self/smaps")?)))
}

pub(super) fn in_table(smaps: &str) -> Vec<Mapping> {
    let mut mapping = None;
    let mut found = Vec::new();
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            found.extend(mapping.take().map(|mapping| Mapping { flags: flags.to_owned(), ..mapping }));
        } else if let Some(key) = line.strip_prefix("ProtectionKey:") {
            mapping = mapping.map(|mapping| Mapping { has_key: key.trim() != "0", ..mapping });
        } else {
            mapping = Mapping::of_line(line).or(mapping);
        }
    }
    found
}
