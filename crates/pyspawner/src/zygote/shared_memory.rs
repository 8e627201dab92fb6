//! Memory that a clone does not copy: what one child writes there, all others and the zygote read. Modules make such memory when they are
//! imported, semaphores of `multiprocessing` above all.

use std::io;

use super::mappings::Mapping;
use crate::sys::mapping::make_private;

/// Gives this process a copy of its own of all shared memory that is writable, or could be made so, and every clone with it. Answers what
/// cannot be copied: memory of devices.
#[expect(unsafe_code, reason = "passes on the duty to be single-threaded")]
pub(super) fn make_all_private(mappings: &[Mapping]) -> io::Result<Vec<String>> {
    let (devices, memory): (Vec<_>, Vec<_>) =
        mappings.iter().filter(|mapping| is_shared(mapping)).partition(|mapping| is_of_a_device(mapping));
    for Mapping { start, length, protection, .. } in memory {
        // SAFETY: the table has just said that it is a whole mapping, and this process is single-threaded: `Boot::ready` has counted.
        unsafe { make_private(*start, *length, *protection) }?;
    }
    Ok(devices.into_iter().map(|mapping| mapping.name.clone()).collect())
}

/// Can be written to, or be made so, and a clone gets it.
fn is_shared(mapping: &Mapping) -> bool {
    mapping.has("sh") && mapping.has("mw") && !mapping.has("dc")
}

fn is_of_a_device(mapping: &Mapping) -> bool {
    mapping.name.starts_with("/dev/")
        && !mapping.name.starts_with("/dev/shm/")
        && !mapping.name.starts_with("/dev/zero")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zygote::mappings::in_table;

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
        let found: Vec<_> = in_table(SMAPS)
            .into_iter()
            .filter(is_shared)
            .map(|mapping| (mapping.length, mapping.name))
            .collect();
        let expected = [(0x1000, "/dev/zero (deleted)"), (0x2000, "/tmp/a b"), (0x1000, "/dev/gpu")];
        assert_eq!(found, expected.map(|(length, name)| (length, name.to_owned())));
    }

    #[test]
    fn only_memory_of_devices_cannot_be_copied() {
        let devices: Vec<_> = in_table(SMAPS).into_iter().filter(is_shared).filter(is_of_a_device).collect();
        assert_eq!(devices.len(), 1);
        assert_eq!(devices[0].protection, libc::PROT_READ | libc::PROT_WRITE);
    }
}
