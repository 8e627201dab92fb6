"""What these tests share."""

from __future__ import annotations

from pyspawner import SandboxConfig

# Landlock, which this sandbox needs, is too old in the machine's kernel; and this is about cgroups.
WITHOUT_NAMESPACES = SandboxConfig.without_namespaces(
    skip_sandbox_except=frozenset({"drop_capabilities", "setuid", "no_new_privs", "seccomp"})
)
