//! Memory of this process changed in place.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr;

const PAGE: usize = 4096;

/// Replaces a mapping of this process by a private copy at the same addresses, with the same contents and protection.
///
/// # Safety
///
/// `[start, start + length)` is one whole mapping, and no other thread uses it meanwhile. Whoever holds pointers into it finds the same
/// bytes there, but no longer those that another process writes.
pub(crate) unsafe fn make_private(start: usize, length: usize, protection: i32) -> io::Result<()> {
    let memory = File::open("/proc/self/mem")?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let copy =
        unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if copy == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the new mapping is `length` bytes of zeroes that nobody else knows.
    let bytes = unsafe { std::slice::from_raw_parts_mut(copy.cast::<u8>(), length) };
    let mut place = start as u64;
    for page in bytes.chunks_mut(PAGE) {
        // Through the file, so that a page behind the end of a mapped file is an error and not SIGBUS: it stays zero.
        let _ = memory.read_exact_at(page, place);
        place += page.len() as u64;
    }
    // SAFETY: `copy` is the mapping made above, whose slice is no longer used; it moves over the one that our caller vouches for.
    let moved = unsafe {
        libc::mprotect(copy, length, protection) == 0
            && libc::mremap(
                copy,
                length,
                length,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                ptr::with_exposed_provenance_mut::<libc::c_void>(start),
            ) != libc::MAP_FAILED
    };
    if moved {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // SAFETY: still the mapping made above.
    unsafe { libc::munmap(copy, length) };
    Err(error)
}

/// Has the kernel gather pages into a huge one, if it can. See `MADV_COLLAPSE` in madvise(2).
///
/// # Safety
///
/// `[start, start + length)` is private memory of no file. Its contents stay the same.
pub(crate) unsafe fn collapse(start: usize, length: usize) {
    // SAFETY: changes only how the memory is kept; our caller vouches for whose it is.
    unsafe {
        libc::madvise(ptr::with_exposed_provenance_mut::<libc::c_void>(start), length, libc::MADV_COLLAPSE)
    };
}
