"""The benchmark beside ``benches/run.py``, which starts it.

- ``workloads``: what a child does. One table.
- ``contestants``: who starts it. One file each, one table.
- ``environments``: the interpreters of the contestants.
- ``worker``: the process that a contestant lives in; it holds the clock.
- ``harness``: asks the workers in turn.
- ``report``: figures, tables and files.
"""
