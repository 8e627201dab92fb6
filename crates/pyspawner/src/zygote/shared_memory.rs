//! Memory that a clone does not copy: what one child writes there, all others and the zygote read. Modules make such memory when they are
//! imported, semaphores of `multiprocessing` above all.

use std::fs;
use std::io;

use crate::sys::mapping::make_private;

/// Gives this process a copy of its own of all shared memory that is writable, or could be made so, and every clone with it. Answers what
/// cannot be copied: memory of devices.
pub(super) fn make_all_private() -> io::Result<Vec<String>> {
    let (devices, memory): (Vec<_>, Vec<_>) = writable()?.into_iter().partition(Mapping::is_of_a_device);
    for mapping in memory {
        mapping.make_private()?;
    }
    Ok(devices.into_iter().map(|mapping| mapping.name).collect())
}

fn writable() -> io::Result<Vec<Mapping>> {
    Ok(in_table(&String::from_utf8_lossy(&fs::read("/proc/self/smaps")?)))
}

/// A mapping of this process.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    length: usize,
    protection: i32,
    name: String,
}

impl Mapping {
    /// The first line of an entry of `proc_pid_smaps(5)`: address range, permissions, offset, device, inode, name.
    fn of_line(line: &str) -> Option<Self> {
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
        let name = fields.skip(3).collect::<Vec<_>>().join(" ");
        Some(Self { start, length, protection, name })
    }

    fn is_of_a_device(&self) -> bool {
        self.name.starts_with("/dev/")
            && !self.name.starts_with("/dev/shm/")
            && !self.name.starts_with("/dev/zero")
    }

    #[expect(unsafe_code, reason = "passes on the duty to be single-threaded")]
    fn make_private(&self) -> io::Result<()> {
        // SAFETY: the table has just said that it is a whole mapping, and this process is single-threaded: `Boot::ready` has counted.
        unsafe { make_private(self.start, self.length, self.protection) }
    }
}

/// The shared mappings that can be written to, less those that a clone does not get.
fn in_table(smaps: &str) -> Vec<Mapping> {
    let mut mapping = None;
    let mut found = Vec::new();
    for line in smaps.lines() {
        let Some(flags) = line.strip_prefix("VmFlags:") else {
            mapping = Mapping::of_line(line).or(mapping);
            continue;
        };
        let has = |wanted| flags.split_ascii_whitespace().any(|flag| flag == wanted);
        if has("sh") && has("mw") && !has("dc") {
            found.extend(mapping.take());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000001000 rw-s 00000000 00:01 1234                       /dev/zero (deleted)
Size:                  4 kB
VmFlags: rd wr sh mr mw me ms sd 
7f0000002000-7f0000003000 r--s 00000000 fe:00 77                         /usr/lib/gconv-modules.cache
Pss_Dirty:             0 kB
VmFlags: rd mr me ms sd 
7f0000004000-7f0000005000 rw-p 00000000 00:00 0 
VmFlags: rd wr mr mw me ac sd 
7f0000006000-7f0000008000 r--s 00000000 fe:00 78                         /tmp/a b
VmFlags: rd sh mr mw me ms sd 
7f0000008000-7f0000009000 rw-s 00000000 00:01 9                          /dev/gpu
VmFlags: rd wr sh mr mw me ms sd 
7f000000a000-7f000000b000 rw-s 00000000 00:01 9                          anon_inode:[io_uring]
VmFlags: rd wr sh mr mw me ms dc sd 
";

    #[test]
    fn shared_mappings_that_are_or_can_be_made_writable_are_found() {
        let found: Vec<_> =
            in_table(SMAPS).into_iter().map(|mapping| (mapping.length, mapping.name)).collect();
        let expected = [(0x1000, "/dev/zero (deleted)"), (0x2000, "/tmp/a b"), (0x1000, "/dev/gpu")];
        assert_eq!(found, expected.map(|(length, name)| (length, name.to_owned())));
    }

    #[test]
    fn only_memory_of_devices_cannot_be_copied() {
        let devices: Vec<_> = in_table(SMAPS).into_iter().filter(Mapping::is_of_a_device).collect();
        assert_eq!(devices.len(), 1);
        assert_eq!(devices[0].protection, libc::PROT_READ | libc::PROT_WRITE);
    }
}
