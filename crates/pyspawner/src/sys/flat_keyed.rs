//! Files of `key number` lines, as the kernel has them for cgroups: "flat keyed" in its `cgroup-v2.rst`.

/// The number behind a key.
pub(crate) fn number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}
