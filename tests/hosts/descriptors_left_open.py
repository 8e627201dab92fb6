"""A module that opens two descriptors, inheritable and high, and forgets them."""

import os

_descriptor = os.open("/dev/null", os.O_RDONLY)
for _number in (301, 3999):
    os.dup2(_descriptor, _number, inheritable=True)
