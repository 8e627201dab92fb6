//! The command line that ps and top show: the memory that `/proc/PID/cmdline` reads.

use std::ptr;

/// Where the kernel put this process's arguments; `arg_start` and `arg_end` of `proc_pid_stat(5)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Title {
    /// An address, not a pointer: it is the kernel's word, and no Rust object lies there.
    start: usize,
    length: usize,
}

impl Title {
    /// Finds the place. `None` where /proc is missing or odd: the command line then stays as it is.
    pub(crate) fn find() -> Option<Self> {
        let line = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The second field, in parentheses, may hold anything; the third follows the last `)`.
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let (start, end): (usize, usize) = (fields.get(45)?.parse().ok()?, fields.get(46)?.parse().ok()?);
        let length = end.checked_sub(start).filter(|length| start != 0 && *length > 2)?;
        Some(Self { start, length })
    }

    /// Shows `name` and nothing of what stood there before; longer names are cut.
    ///
    /// A last byte that is not NUL tells the kernel that the process has set its title, so that readers see only the bytes up to
    /// the first NUL.
    pub(crate) fn set(self, name: &[u8]) {
        let shown = &name[..name.len().min(self.length - 2)];
        let area = ptr::with_exposed_provenance_mut::<u8>(self.start);
        // SAFETY: the kernel placed the arguments in [start, start + length) of this process's stack, writable and never
        // unmapped; CPython and glibc made their own copies at start-up, so no reference into it is alive.
        unsafe {
            ptr::write_bytes(area, 0, self.length);
            ptr::copy_nonoverlapping(shown.as_ptr(), area, shown.len());
            area.add(self.length - 1).write(b'.');
        }
    }
}
