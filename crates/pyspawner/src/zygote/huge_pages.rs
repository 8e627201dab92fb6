//! Fewer pages to copy. A clone copies an entry for every page of the zygote that is not a file's, and its end drops as many: with pandas
//! imported, that is most of what a spawn takes. Of each 2 MiB that are gathered into one huge page, only one entry is left. A child that
//! writes to them still gets copies of 4 KiB.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::mappings::Mapping;
use crate::sys::mapping::collapse;

/// What one entry of a page table's upper level maps, on x86-64 and, with pages of 4 KiB, on aarch64.
pub(super) const HUGE: usize = 2 << 20;

/// How many pages of a block must be this process's alone to be worth copies of the others.
const MOSTLY: usize = HUGE / PAGE / 2;

const PAGE: usize = 4096;

/// Of an entry of the page map: nobody else has the page, and it is in memory; `proc_pid_pagemap(5)`.
const EXCLUSIVE: u64 = 1 << 56;
const PRESENT: u64 = 1 << 63;

/// Gathers what imports have left in the private memory of this process into huge pages. Where the kernel cannot (before Linux 6.1, or
/// no memory in one piece), the pages stay as they are: nothing but time depends on it.
pub(super) fn gather<'a>(mappings: impl Iterator<Item = &'a Mapping>) {
    gather_where(mappings, |_| true);
}

/// The same in a clone of a zygote, and only where most of the pages are the clone's own: to gather what it shares would be to copy it.
pub(super) fn gather_own<'a>(mappings: impl Iterator<Item = &'a Mapping>) {
    if let Ok(page_map) = File::open("/proc/self/pagemap") {
        gather_where(mappings, |start| own_pages(&page_map, start).is_ok_and(|own| own >= MOSTLY));
    }
}

#[expect(unsafe_code, reason = "passes on what the table of mappings says")]
fn gather_where<'a>(mappings: impl Iterator<Item = &'a Mapping>, is_wanted: impl Fn(usize) -> bool) {
    for mapping in mappings.filter(|mapping| is_gatherable(mapping)) {
        for start in whole_blocks(&mapping.range()).filter(|start| is_wanted(*start)) {
            // SAFETY: private memory without a file, by the table; and its contents stay the same.
            unsafe { collapse(start, HUGE) };
        }
    }
}

fn own_pages(page_map: &File, start: usize) -> io::Result<usize> {
    let mut entries = [0; HUGE / PAGE * size_of::<u64>()];
    page_map.read_exact_at(&mut entries, (start / PAGE * size_of::<u64>()) as u64)?;
    let entries = entries.chunks_exact(size_of::<u64>()).filter_map(|entry| entry.try_into().ok());
    let own = EXCLUSIVE | PRESENT;
    Ok(entries.map(u64::from_ne_bytes).filter(|entry| entry & own == own).count())
}

/// Private, writable, no file's, copied to children, and nobody has asked for small pages. A stack grows down and stays as it is.
fn is_gatherable(mapping: &Mapping) -> bool {
    mapping.is_anonymous
        && mapping.is_writable()
        && !["sh", "dc", "wf", "gd", "nh", "lo"].into_iter().any(|flag| mapping.has(flag))
}

/// Where the huge pages begin that a range can have.
pub(super) fn whole_blocks(range: &Range<usize>) -> impl Iterator<Item = usize> + use<> {
    let Range { start, end } = *range;
    (start.next_multiple_of(HUGE)..end).step_by(HUGE).take_while(move |start| start + HUGE <= end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zygote::mappings::in_table;

    fn table(permissions: &str, inode: u32, flags: &str) -> Vec<Mapping> {
        in_table(&format!(
            "7f0000100000-7f0000700000 {permissions} 00000000 00:00 {inode}\nVmFlags: {flags}\n"
        ))
    }

    #[test]
    fn only_whole_aligned_blocks_are_gathered() {
        let mappings = table("rw-p", 0, "rd wr mr mw me ac sd");
        let blocks: Vec<_> = whole_blocks(&mappings[0].range()).collect();
        assert_eq!(blocks, [0x7f00_0020_0000, 0x7f00_0040_0000]);
    }

    #[test]
    fn memory_that_is_private_and_writable_and_no_files_is_gathered() {
        assert!(is_gatherable(&table("rw-p", 0, "rd wr mr mw me ac sd")[0]));
    }

    #[test]
    fn other_memory_stays_as_it_is() {
        for (permissions, inode, flags) in [
            ("r--p", 0, "rd mr mw me sd"),
            ("rw-p", 77, "rd wr mr mw me ac sd"),
            ("rw-s", 0, "rd wr sh mr mw me ms sd"),
            ("rw-p", 0, "rd wr mr mw me gd ac"),
            ("rw-p", 0, "rd wr mr mw me dc"),
            ("rw-p", 0, "rd wr mr mw me wf"),
            ("rw-p", 0, "rd wr mr mw me nh"),
            ("rw-p", 0, "rd wr mr mw me lo"),
        ] {
            assert!(!is_gatherable(&table(permissions, inode, flags)[0]), "{permissions} {inode} {flags}");
        }
    }
}
