//! Files of `key number` lines, as the kernel has them for cgroups: "flat keyed" in its `cgroup-v2.rst`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// The CPU time in a cgroup's `cpu.stat`.
pub(crate) fn used(stat: &File) -> Option<Duration> {
    let mut text = [0; 512];
    let length = stat.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..length]).ok()?;
    number(text, "usage_usec").map(Duration::from_micros)
}

/// The number behind a key.
pub(crate) fn number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}
