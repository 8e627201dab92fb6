//! What the dynamic loader has put into this process.

use std::ffi::{CStr, c_int, c_void};
use std::ops::Range;
use std::ptr;

/// Where the program and each library has its variables, in whole pages: `dl_iterate_phdr(3)`.
pub(crate) fn variables() -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    // SAFETY: `collect` gets what this call passes on: a live vector that nobody else uses meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut found).cast()) };
    found
}

unsafe extern "C" fn collect(object: *mut libc::dl_phdr_info, _: usize, found: *mut c_void) -> c_int {
    const PAGE: usize = 4096;
    // SAFETY: the loader passes a live description with this many headers, and the pointer that it was given.
    let (headers, base, found) = unsafe {
        let object = &*object;
        let headers = match object.dlpi_phdr {
            headers if headers.is_null() => &[][..],
            headers => std::slice::from_raw_parts(headers, object.dlpi_phnum.into()),
        };
        (headers, object.dlpi_addr, &mut *found.cast::<Vec<Range<usize>>>())
    };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W == 0 {
            continue;
        }
        let range = (usize::try_from(base + header.p_vaddr), usize::try_from(header.p_memsz));
        if let (Ok(start), Ok(length)) = range {
            found.push(start & !(PAGE - 1)..(start + length).next_multiple_of(PAGE));
        }
    }
    0
}

/// Whether `malloc` is that of the C library: `environment` may have loaded another one before.
pub(crate) fn malloc_is_the_c_librarys() -> bool {
    let object = |name: &CStr| {
        let mut facts = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: looks up a name and an address; `facts` is valid as zeroes, and written if the answer is not 0.
        unsafe {
            let address = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
            (libc::dladdr(address, facts.as_mut_ptr()) != 0).then(|| facts.assume_init().dli_fbase)
        }
    };
    matches!((object(c"malloc"), object(c"gnu_get_libc_version")), (Some(one), Some(other)) if ptr::eq(one, other))
}
