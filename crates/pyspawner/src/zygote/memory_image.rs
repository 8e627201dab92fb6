//! Memory that a clone need not copy. The kernel copies an entry for every page that a process has written, one by one, and drops it again
//! at the child's end: with pandas imported, that is most of what a spawn takes. What is mapped from a file and was not written since, it
//! does not copy: a child finds it when it looks there.
//!
//! So when the imports are done, what they have written goes to a file of memory, the *image*, which is sealed and mapped in the same place,
//! private: whoever writes to it gets a copy of the page. What the zygote itself writes as it serves goes back to ordinary memory, page by
//! page: a single written page would have all of its mapping copied for every child.
//!
//! Only memory whose owner is known is moved: the variables of loaded objects, the heap of the C library, the arenas of the interpreter.
//! Other allocators expect zeroes after `MADV_DONTNEED`, and get them from ordinary memory only; and what they map by themselves they may
//! let grow in its place, which a file cannot.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, openat};
use rustix::io::Errno;

use super::huge_pages::{HUGE, whole_blocks};
use super::mappings::Mapping;
use crate::sys::kernel::without_signals;
use crate::sys::loaded;
use crate::sys::mapping::{collapse, make_anonymous, map_file, move_to_file};

const PAGE: usize = 4096;

/// So many pages between two written ones cost less to copy than a mapping of their own: it takes a microsecond, a page some 0.05.
const WORTH_A_MAPPING: usize = 32 * PAGE;

/// A clone finds out what the zygote writes. Later ones may find more: what is looked at is doubled each time, so that it costs nothing.
#[derive(Debug, Default)]
struct Schedule {
    clones: u64,
}

impl Schedule {
    fn is_due(&mut self) -> bool {
        self.clones += 1;
        self.clones.is_power_of_two()
    }
}

/// A part of memory that is to be moved.
#[derive(Debug)]
struct Part {
    range: Range<usize>,
    protection: i32,
    offset: u64,
}

/// What is to be moved to an image.
#[derive(Debug)]
pub(super) struct Planned {
    tables: OwnTables,
    parts: Vec<Part>,
}

/// The image, and how to tell what was written since.
#[derive(Debug)]
pub(super) struct MemoryImage {
    /// Nobody can write to it.
    file: File,
    inode: u64,
    tables: OwnTables,
    schedule: Schedule,
    notes: Notes,
}

/// What a look at the tables needs. Kept, because memory that is allocated and freed for it leaves its marks all over the heap.
#[derive(Debug, Default)]
struct Notes {
    maps: Vec<u8>,
    hot: Vec<Part>,
    cold: Vec<Part>,
}

/// What the kernel tells of this process's memory. Opened before the zygote leaves the host's root, where it can be found.
#[derive(Debug)]
pub(super) struct OwnTables {
    maps: File,
    pagemap: File,
    descriptors: File,
}

impl Planned {
    /// Chooses what of the memory that imports have left is moved. `arenas` is where the interpreter has its small objects.
    ///
    /// # Errors
    ///
    /// The kernel does not tell what was written.
    pub(super) fn new(
        tables: OwnTables,
        mappings: &[Mapping],
        arenas: Option<Range<usize>>,
    ) -> io::Result<Self> {
        let known = known_memory(mappings, arenas);
        let mut parts = Vec::new();
        for (mapping, range) in movable(mappings, &known) {
            let protection = mapping.protection;
            let mut found = |range| parts.push(Part { range, protection, offset: 0 });
            if is_divisible(mapping) {
                let mut written = Gathered::new(range.clone());
                tables.each_written_page(&range, |page| written.extend(page, &mut found))?;
                written.last().map(found);
            } else {
                // Whole: the rest of it is the file's, and would be copied with what is not.
                let mut is_written = false;
                tables.each_written_page(&range, |_| is_written = true)?;
                is_written.then(|| found(range));
            }
        }
        Ok(Self { tables, parts })
    }

    /// Whether some of it is to be moved.
    pub(super) fn touches(&self, mapping: &Mapping) -> bool {
        self.parts.iter().any(|part| part.range.start < mapping.range().end && mapping.start < part.range.end)
    }

    /// Moves it.
    ///
    /// # Errors
    ///
    /// What the kernel does not allow here. All memory has the same contents as before.
    #[expect(unsafe_code, reason = "passes on the duty to be single-threaded")]
    pub(super) fn take(self) -> io::Result<MemoryImage> {
        let Self { tables, parts } = self;
        let image = new_file()?;
        let notes = Notes {
            maps: Vec::with_capacity(ROOM_FOR_MAPS),
            hot: Vec::with_capacity(ROOM_FOR_PARTS),
            cold: Vec::with_capacity(ROOM_FOR_PARTS),
        };
        let mut end = 0;
        let mut refused = None;
        without_signals(|| {
            for Part { range, protection, .. } in &parts {
                let offset = place_after(end, range);
                // SAFETY: private memory by the table; this process is single-threaded, as `Boot::ready` has counted, and no signal comes.
                let moved =
                    unsafe { move_to_file(range.start, range.len(), *protection, image.as_fd(), offset) };
                match moved {
                    Ok(()) => end = offset + range.len() as u64,
                    // One that cannot be read, behind the end of a file, stays as it is.
                    Err(error) => refused = Some(error),
                }
            }
        });
        if let (0, Some(error)) = (end, refused) {
            return Err(error);
        }
        for start in parts.iter().flat_map(|part| whole_blocks(&part.range)) {
            // SAFETY: a private mapping of this process, whose contents stay the same.
            unsafe { collapse(start, HUGE) };
        }
        fcntl_add_seals(&image, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        let file = tables.reopened(&image)?;
        let inode = file.metadata()?.ino();
        // Its memory is in the image, and freeing it would write there.
        std::mem::forget(parts);
        Ok(MemoryImage { file, inode, tables, schedule: Schedule::default(), notes })
    }
}

impl MemoryImage {
    /// Looks now and then at what the zygote has written since, and takes it out of the image.
    pub(super) fn after_clone(&mut self) {
        if self.schedule.is_due() {
            // Nothing but time depends on it.
            let _ = self.take_out_written();
        }
    }

    #[expect(unsafe_code, reason = "passes on the duty to be single-threaded")]
    fn take_out_written(&mut self) -> io::Result<()> {
        let Self { file, inode, tables, notes: Notes { maps, hot, cold }, .. } = self;
        read_all(&tables.maps, maps)?;
        hot.clear();
        cold.clear();
        // Libraries may have unmapped, moved or protected some of it.
        for mapping in
            std::str::from_utf8(maps).unwrap_or_default().lines().filter_map(|line| of_image(line, *inode))
        {
            let (mut place, protection) = (mapping.range.start, mapping.protection);
            let offset = |place| mapping.offset + (place - mapping.range.start) as u64;
            let mut note = |range: Range<usize>| {
                if place < range.start {
                    cold.push(Part { range: place..range.start, protection, offset: offset(place) });
                }
                place = range.end;
                hot.push(Part { protection, offset: offset(range.start), range });
            };
            let mut written = Gathered::new(mapping.range.clone());
            tables.each_written_page(&mapping.range, |page| written.extend(page, &mut note))?;
            if let Some(last) = written.last() {
                note(last);
                if place < mapping.range.end {
                    cold.push(Part { range: place..mapping.range.end, protection, offset: offset(place) });
                }
            }
        }
        without_signals(|| {
            for Part { range, protection, .. } in hot {
                // SAFETY: a private mapping of the image, by the table; single-threaded, as every clone checks, and no signal comes.
                unsafe { make_anonymous(range.start, range.len(), *protection) }?;
            }
            for Part { range, protection, offset } in cold {
                // This very function may have written there since the first look.
                let mut untouched = true;
                tables.each_written_page(range, |_| untouched = false)?;
                if untouched {
                    // SAFETY: a part of a private mapping of the image that has not been written; as above.
                    unsafe { map_file(range.start, range.len(), *protection, file.as_fd(), *offset) }?;
                }
            }
            Ok(())
        })
    }
}

/// Where in the file a part goes, after what is there. The kernel puts neighbours that follow each other there into one mapping; and where
/// addresses and places agree, huge pages fit.
fn place_after(end: u64, range: &Range<usize>) -> u64 {
    if whole_blocks(range).next().is_none() {
        return end;
    }
    end.next_multiple_of(HUGE as u64) + (range.start % HUGE) as u64
}

/// A mapping of the image, by its line in `/proc/PID/maps`.
fn of_image(line: &str, inode: u64) -> Option<Part> {
    // Without a copy of all the other names.
    if !line.contains(NAME_IN_TABLES) {
        return None;
    }
    let Mapping { start, length, protection, offset, .. } =
        Mapping::of_line(line).filter(|mapping| mapping.inode == inode)?;
    (protection & libc::PROT_READ != 0).then_some(Part { range: start..start + length, protection, offset })
}

/// Room for the tables of a process with some thousand mappings. More grows, once.
const ROOM_FOR_MAPS: usize = 256 << 10;
const ROOM_FOR_PARTS: usize = 1 << 10;

const NAME: &str = "pyspawner-image";
const NAME_IN_TABLES: &str = "/memfd:pyspawner-image";

/// A file of memory; without the right to be executed where the kernel knows of that, since Linux 6.3.
fn new_file() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => Ok(memfd_create(NAME, flags)?),
        other => Ok(other?),
    }
}

/// All that a file of /proc says now.
fn read_all(file: &File, text: &mut Vec<u8>) -> io::Result<()> {
    text.clear();
    let mut buffer = [0; PAGE];
    loop {
        match file.read_at(&mut buffer, text.len() as u64)? {
            0 => return Ok(()),
            length => text.extend_from_slice(&buffer[..length]),
        }
    }
}

/// Whose owner is known, in the order of addresses.
fn known_memory(mappings: &[Mapping], arenas: Option<Range<usize>>) -> Vec<Range<usize>> {
    let mut known = loaded::variables();
    if loaded::malloc_is_the_c_librarys() {
        known.extend(mappings.iter().filter(|mapping| mapping.name == "[heap]").map(Mapping::range));
    }
    // What a zygote has moved of which this one is a clone.
    known.extend(mappings.iter().filter(|mapping| is_of_an_image(mapping)).map(Mapping::range));
    known.extend(arenas);
    known.sort_by_key(|range| range.start);
    known
}

/// What of known memory may be moved, with the mapping that it is in. A mapping of a file is moved whole or not at all.
fn movable<'a>(
    mappings: &'a [Mapping],
    known: &'a [Range<usize>],
) -> impl Iterator<Item = (&'a Mapping, Range<usize>)> {
    mappings.iter().filter(|mapping| is_movable(mapping)).flat_map(move |mapping| {
        known.iter().filter_map(move |known| {
            let range = mapping.start.max(known.start)..mapping.range().end.min(known.end);
            let is_enough = if is_divisible(mapping) { !range.is_empty() } else { range == mapping.range() };
            is_enough.then_some((mapping, range))
        })
    })
}

/// Whether parts of it can be moved without the rest.
fn is_divisible(mapping: &Mapping) -> bool {
    mapping.is_anonymous || is_of_an_image(mapping)
}

fn is_of_an_image(mapping: &Mapping) -> bool {
    mapping.name.starts_with(NAME_IN_TABLES)
}

/// Private, readable, not executable, copied to children as it is, and nobody has asked the kernel for something special.
fn is_movable(mapping: &Mapping) -> bool {
    const SPECIAL: [&str; 18] = [
        "sh", "gd", "pf", "lo", "io", "dc", "de", "wf", "dd", "mm", "ht", "um", "uw", "ui", "ss", "sl", "mg",
        "nh",
    ];
    mapping.protection & (libc::PROT_READ | libc::PROT_EXEC) == libc::PROT_READ
        && !mapping.has_key
        && !SPECIAL.into_iter().any(|flag| mapping.has(flag))
}

/// Puts pages together to parts of `whole`. Two of them have a gap between them that is worth a mapping of its own, and so have the first
/// and the last to the ends.
struct Gathered {
    whole: Range<usize>,
    last: Option<Range<usize>>,
}

impl Gathered {
    fn new(whole: Range<usize>) -> Self {
        Self { whole, last: None }
    }

    /// One page more, above all others. Tells of a part that is complete.
    fn extend(&mut self, page: usize, complete: impl FnOnce(Range<usize>)) {
        let end = page + PAGE;
        match &mut self.last {
            Some(last) if page < last.end + WORTH_A_MAPPING => last.end = end,
            Some(last) => complete(std::mem::replace(last, page..end)),
            None if page < self.whole.start + WORTH_A_MAPPING => self.last = Some(self.whole.start..end),
            None => self.last = Some(page..end),
        }
    }

    fn last(self) -> Option<Range<usize>> {
        let Self { whole, last } = self;
        last.map(|last| {
            let is_near = whole.end < last.end + WORTH_A_MAPPING;
            last.start..if is_near { whole.end } else { last.end }
        })
    }
}

impl OwnTables {
    pub(super) fn open() -> io::Result<Self> {
        let open = |name: &str| File::open(format!("/proc/self/{name}"));
        Ok(Self { maps: open("maps")?, pagemap: open("pagemap")?, descriptors: open("fd")? })
    }

    /// The same file, to be read only.
    fn reopened(&self, file: &OwnedFd) -> io::Result<File> {
        let number = file.as_raw_fd().to_string();
        Ok(openat(&self.descriptors, number, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// The addresses of pages that are this process's own, and no file's, without a write to the heap. `/proc/PID/pagemap` in proc(5).
    fn each_written_page(&self, range: &Range<usize>, mut found: impl FnMut(usize)) -> io::Result<()> {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const OF_A_FILE: u64 = 1 << 61;
        let mut entries = [0; PAGE];
        let mut place = range.start;
        while place < range.end {
            let count = ((range.end - place) / PAGE).min(PAGE / 8);
            let entries = &mut entries[..count * 8];
            self.pagemap.read_exact_at(entries, (place / PAGE * 8) as u64)?;
            for entry in entries.chunks_exact(8) {
                let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
                if entry & (PRESENT | SWAPPED) != 0 && entry & OF_A_FILE == 0 {
                    found(place);
                }
                place += PAGE;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges, some of one")]
mod tests {
    use super::*;
    use crate::zygote::mappings::in_table;

    const LIBRARY: &str = "\
7f0000000000-7f0000004000 r--p 00000000 fe:00 77 /usr/lib/a.so
VmFlags: rd mr mw me
7f0000004000-7f0000008000 r-xp 00004000 fe:00 77 /usr/lib/a.so
VmFlags: rd ex mr mw me
7f0000008000-7f000000a000 r--p 00008000 fe:00 77 /usr/lib/a.so
VmFlags: rd mr mw me ac
7f000000a000-7f000000b000 rw-p 0000a000 fe:00 77 /usr/lib/a.so
VmFlags: rd wr mr mw me ac
7f000000b000-7f0000020000 rw-p 00000000 00:00 0
VmFlags: rd wr mr mw me ac
";
    /// Its variables: the end of it is the library's, and then comes memory of another owner.
    const VARIABLES: Range<usize> = 0x7f00_0000_8000..0x7f00_0001_0000;

    fn one(permissions: &str, flags: &str) -> Mapping {
        let smaps = format!(
            "7f0000000000-7f0000100000 {permissions} 00000000 00:00 0\nProtectionKey: 0\nVmFlags: {flags}\n"
        );
        in_table(&smaps).remove(0)
    }

    fn gather(pages: &[usize], whole: Range<usize>) -> Vec<Range<usize>> {
        let mut parts = Vec::new();
        let mut gathered = Gathered::new(whole.start * PAGE..whole.end * PAGE);
        for page in pages {
            gathered.extend(page * PAGE, |part| parts.push(part));
        }
        parts.extend(gathered.last());
        parts.into_iter().map(|part| part.start / PAGE..part.end / PAGE).collect()
    }

    #[test]
    fn a_librarys_variables_are_moved_and_what_lies_beside_them_is_not() {
        let mappings = in_table(LIBRARY);
        let found: Vec<_> = movable(&mappings, &[VARIABLES]).map(|(_, range)| range).collect();
        let expected = [
            0x7f00_0000_8000..0x7f00_0000_a000,
            0x7f00_0000_a000..0x7f00_0000_b000,
            0x7f00_0000_b000..0x7f00_0001_0000,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_mapping_of_a_file_is_moved_whole_or_not_at_all() {
        let mappings = in_table(LIBRARY);
        let half = [0x7f00_0000_9000..0x7f00_0000_b000];
        let found: Vec<_> = movable(&mappings, &half).map(|(_, range)| range).collect();
        assert_eq!(found, [0x7f00_0000_a000..0x7f00_0000_b000]);
    }

    #[test]
    fn memory_of_an_unknown_owner_stays() {
        assert_eq!(movable(&in_table(LIBRARY), &[]).count(), 0);
    }

    #[test]
    fn ordinary_private_memory_is_movable() {
        assert!(is_movable(&one("rw-p", "rd wr mr mw me ac sd")));
        assert!(is_movable(&one("r--p", "rd mr mw me ac")));
    }

    #[test]
    fn memory_with_a_wish_stays_as_it_is() {
        for (permissions, flags) in [
            ("rwxp", "rd wr ex mr mw me ac"),
            ("---p", "mr mw me"),
            ("rw-s", "rd wr sh mr mw me ms"),
            ("rw-p", "rd wr mr mw me gd ac"),
            ("rw-p", "rd wr mr mw me lo ac"),
            ("rw-p", "rd wr mr mw me dc ac"),
            ("rw-p", "rd wr mr mw me wf ac"),
            ("rw-p", "rd wr mr mw me dd ac"),
            ("rw-p", "rd wr mr mw me um ac"),
            ("rw-p", "rd wr mr mw me uw ac"),
            ("rw-p", "rd wr mr mw me ht"),
            ("rw-p", "rd wr mr mw me nh"),
            ("rw-p", "rd wr mr mw me sl"),
            ("rw-p", "rd wr mr mw me pf io"),
        ] {
            assert!(!is_movable(&one(permissions, flags)), "{permissions} {flags}");
        }
    }

    #[test]
    fn memory_behind_a_protection_key_stays_as_it_is() {
        let mut mapping = one("rw-p", "rd wr mr mw me ac");
        mapping.has_key = true;
        assert!(!is_movable(&mapping));
        let smaps = "7f0000000000-7f0000001000 rw-p 00000000 00:00 0\nProtectionKey: 1\nVmFlags: rd wr\n";
        assert!(in_table(smaps)[0].has_key);
    }

    #[test]
    fn pages_that_are_near_each_other_are_one_part() {
        assert_eq!(gather(&[100, 110, 200], 0..300), [100..111, 200..201]);
    }

    #[test]
    fn a_part_near_an_end_reaches_to_it() {
        assert_eq!(gather(&[3, 290], 0..300), [0..4, 290..300]);
        assert_eq!(gather(&[5], 0..10), [0..10]);
    }

    #[test]
    fn where_nothing_is_written_there_is_no_part() {
        assert_eq!(gather(&[], 0..300), []);
    }

    #[test]
    fn huge_pages_fit_where_a_part_is_large_enough_for_them() {
        let (small, large) = (0x1000..0x5000, 0x50_1000..0xa0_0000);
        assert_eq!(place_after(0x3000, &small), 0x3000);
        assert_eq!(place_after(0x3000, &large), 0x20_0000 + 0x10_1000);
        assert_eq!(place_after(0, &large), 0x10_1000);
    }

    #[test]
    fn a_line_of_another_file_is_not_the_images() {
        let line = |name, inode| format!("7f0000000000-7f0000002000 rw-p 00005000 00:01 {inode} {name}");
        let found = of_image(&line("/memfd:pyspawner-image (deleted)", 7), 7).unwrap();
        assert_eq!((found.range, found.offset), (0x7f00_0000_0000..0x7f00_0000_2000, 0x5000));
        assert!(of_image(&line("/memfd:pyspawner-image (deleted)", 8), 7).is_none());
        assert!(of_image(&line("/memfd:other (deleted)", 7), 7).is_none());
    }

    #[test]
    fn looks_become_rarer() {
        let mut schedule = Schedule::default();
        let due: Vec<_> = (1..=20).filter(|_| schedule.is_due()).collect();
        assert_eq!(due, [1, 2, 4, 8, 16]);
    }
}
