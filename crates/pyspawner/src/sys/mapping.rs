//! Memory of this process changed in place.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
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
/// `[start, start + length)` is private memory, of no file or of a file in memory that is this process's own. Its contents stay the same.
pub(crate) unsafe fn collapse(start: usize, length: usize) {
    // SAFETY: changes only how the memory is kept; our caller vouches for whose it is.
    unsafe {
        libc::madvise(ptr::with_exposed_provenance_mut::<libc::c_void>(start), length, libc::MADV_COLLAPSE)
    };
}

/// Writes memory of this process to a file, and maps the file in its place, private. Until it is written to, it is not this process's own.
///
/// # Safety
///
/// `[start, start + length)` is private memory in whole pages, and nobody writes to it meanwhile: no other thread, no signal handler. Its
/// contents stay the same.
pub(crate) unsafe fn move_to_file(
    start: usize,
    length: usize,
    protection: i32,
    file: BorrowedFd<'_>,
    offset: u64,
) -> io::Result<()> {
    // Nothing here may write to the heap, of which this may be a part.
    let mut done = 0;
    while done < length {
        let place = libc::off_t::try_from(offset + done as u64).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let memory = ptr::with_exposed_provenance(start + done);
        // SAFETY: the kernel reads; what is not mapped is an error.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), memory, length - done, place) };
        match usize::try_from(written) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    // SAFETY: by our caller; and the file has the same contents there, from which nothing is taken until the seals are on it.
    unsafe { map_file(start, length, protection, file, offset) }
}

/// Maps a part of a file, private, in the place of what is there.
///
/// # Safety
///
/// `[start, start + length)` is memory that has these contents, in whole pages, and nobody writes to it meanwhile.
pub(crate) unsafe fn map_file(
    start: usize,
    length: usize,
    protection: i32,
    file: BorrowedFd<'_>,
    offset: u64,
) -> io::Result<()> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
    // SAFETY: our caller vouches that it changes nothing.
    let mapped = unsafe {
        libc::mmap(
            ptr::with_exposed_provenance_mut(start),
            length,
            protection,
            flags,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Replaces a part of a private mapping by anonymous memory with the same contents.
///
/// # Safety
///
/// `[start, start + length)` is private memory that can be read, in whole pages, and nobody writes to it meanwhile.
pub(crate) unsafe fn make_anonymous(start: usize, length: usize, protection: i32) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at a place of the kernel's choice, which nobody else knows; it is filled by a plain copy and moves over the
    // memory that our caller vouches for.
    unsafe {
        let copy = libc::mmap(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if copy == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let place = ptr::with_exposed_provenance_mut::<libc::c_void>(start);
        ptr::copy_nonoverlapping(place.cast::<u8>(), copy.cast::<u8>(), length);
        if libc::mprotect(copy, length, protection) == 0
            && libc::mremap(copy, length, length, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, place)
                != libc::MAP_FAILED
        {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        libc::munmap(copy, length);
        Err(error)
    }
}
