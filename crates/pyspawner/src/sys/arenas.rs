//! One region for the arenas of the interpreter's small objects. By itself it maps each where there is room, between mappings of others.
//! In one piece they are known by their addresses, nobody else's memory is among them, and huge pages fit.

use std::ffi::{CStr, c_void};
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// What CPython has asked for since 3.10, in bytes. It maps other things through its allocator of arenas too.
const ARENA: usize = 1 << 20;
const WORDS: usize = 4;
/// Room for 256 arenas. It is address space, and no memory; whoever has more objects gets the rest as without us.
const REGION: usize = WORDS * 64 * ARENA;
const HUGE: usize = 2 << 20;

static BASE: AtomicUsize = AtomicUsize::new(0);
static GIVES: AtomicBool = AtomicBool::new(false);
/// One bit for each arena that is free. No lock: a fork of a process with threads would copy it as it is held.
static FREE: [AtomicU64; WORDS] = [const { AtomicU64::new(u64::MAX) }; WORDS];

/// `PyObjectArenaAllocator`, as it has been since CPython 3.4.
#[repr(C)]
struct Allocator {
    context: *mut c_void,
    allocate: unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void, *mut c_void, usize),
}

/// Reserves the region, and tells the interpreter by its function of this name, `PyObject_SetArenaAllocator`, which is not in the stable
/// ABI. Without that function, or without the addresses, arenas lie where they lay.
pub(crate) fn lend(setter: &CStr) {
    // SAFETY: looks a name up.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, setter.as_ptr()) };
    if found.is_null() {
        return;
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let region = unsafe { libc::mmap(ptr::null_mut(), REGION + HUGE, libc::PROT_NONE, flags, -1, 0) };
    if region == libc::MAP_FAILED {
        return;
    }
    BASE.store(region.expose_provenance().next_multiple_of(HUGE), Ordering::Release);
    GIVES.store(true, Ordering::Release);
    let allocator = Allocator { context: ptr::null_mut(), allocate, free };
    // SAFETY: the function of this name has had this type since CPython 3.4; it copies what it gets.
    unsafe {
        let set: unsafe extern "C" fn(*const Allocator) = std::mem::transmute(found);
        set(&raw const allocator);
    }
}

/// No arena is taken from the region any more, and what is left of it is given back. The addresses of what has been used.
pub(crate) fn close() -> Option<Range<usize>> {
    let base = BASE.load(Ordering::Acquire);
    if !GIVES.swap(false, Ordering::AcqRel) {
        return None;
    }
    let is_used = |slot: &usize| FREE[slot / 64].load(Ordering::Acquire) & 1 << (slot % 64) == 0;
    let used = (0..WORDS * 64).rev().find(is_used).map_or(0, |slot| (slot + 1) * ARENA);
    // SAFETY: above the last arena that the interpreter has, inside the region made by `lend`.
    unsafe { libc::munmap(ptr::with_exposed_provenance_mut(base + used), REGION - used) };
    Some(base..base + used)
}

fn take_slot() -> Option<usize> {
    FREE.iter().enumerate().find_map(|(index, word)| {
        let lowest = |free: u64| (free != 0).then(|| free & (free - 1));
        let before = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, lowest).ok()?;
        Some(index * 64 + before.trailing_zeros() as usize)
    })
}

unsafe extern "C" fn allocate(_: *mut c_void, size: usize) -> *mut c_void {
    if size == ARENA && GIVES.load(Ordering::Acquire) {
        if let Some(slot) = take_slot() {
            let arena = ptr::with_exposed_provenance_mut(BASE.load(Ordering::Acquire) + slot * ARENA);
            // SAFETY: a slot that nobody has, inside the region made by `lend`.
            if unsafe { libc::mprotect(arena, ARENA, libc::PROT_READ | libc::PROT_WRITE) } == 0 {
                return arena;
            }
            FREE[slot / 64].fetch_or(1 << (slot % 64), Ordering::AcqRel);
        }
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let memory =
        unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if memory == libc::MAP_FAILED { ptr::null_mut() } else { memory }
}

unsafe extern "C" fn free(_: *mut c_void, memory: *mut c_void, size: usize) {
    let base = BASE.load(Ordering::Acquire);
    let address = memory.expose_provenance();
    let is_ours = size == ARENA && (base..base + REGION).contains(&address);
    if !is_ours || !GIVES.load(Ordering::Acquire) {
        // SAFETY: the interpreter gives back what it got, from `allocate` or from mmap(2) before `lend`.
        unsafe { libc::munmap(memory, size) };
        return;
    }
    // SAFETY: the same; it expects nothing of the contents of an arena that it gets.
    unsafe { libc::madvise(memory, size, libc::MADV_DONTNEED) };
    let slot = (address - base) / ARENA;
    FREE[slot / 64].fetch_or(1 << (slot % 64), Ordering::AcqRel);
}
