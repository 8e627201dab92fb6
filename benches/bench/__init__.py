"""The benchmark beside ``benches/run.py``, which starts it.

- ``workloads``: what a child does. One table.
- ``contestants``: who starts it. One file each, one table.
- ``environments``: the interpreters of the contestants.
- ``worker``, ``actions``: the process that a contestant lives in, and what it can be told to do. It holds the clock.
- ``team``: the workers of all contestants, and what went wrong in them.
- ``latency``, ``throughput``, ``cpu``, ``memory``, ``start_time``: what is measured of all contestants, in turn.
- ``layers``, ``outcomes``, ``networks``: what is measured of pyspawner, and of its networks beside 1.0's.
- ``headline``: ours against each of the others. ``plots``: the same as charts. ``report``: tables and files.
"""
