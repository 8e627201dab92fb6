"""A module that changes what another one holds."""

import large_parent  # pyright: ignore[reportMissingImports] (a test writes it)

large_parent.HELD[:] = b"w" * len(large_parent.HELD)
