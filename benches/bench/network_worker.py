"""A process in a network namespace of its own that spawns children with a network, so many alive at a time.

It answers each line on standard input, ``{"children": 32}``, with one on standard output: ``{"milliseconds": …}`` for a child, from its
spawn to its end. Its interpreter has pyspawner, this one or 1.0.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pyspawner


def wait_for_input() -> None:
    """Be a child that ends when it is told to."""
    sys.stdin.read()


def managed(number: int) -> pyspawner.ManagedNetwork:
    """Return a network whose names, addresses and firewall are pyspawner's."""
    del number
    return pyspawner.NetworkConfig.managed(dns=())


def by_hand(number: int) -> pyspawner.NetworkConfig:
    """Return one whose names and addresses are the caller's, without a firewall."""
    return pyspawner.NetworkConfig(
        f"bench-{number}", f"bench-{number}-c", f"10.99.{number}.1", f"10.99.{number}.2"
    )


def main(kind: str) -> None:
    """Serve until standard input ends."""
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", setting).write_text("1")
    network = {"managed": managed, "by hand": by_hand}[kind]
    client = pyspawner.Client(
        child_main="bench.network_worker.wait_for_input",
        environment={"PYTHONPATH": str(Path(__file__).parents[1])},
        preload_imports=[],
    )
    for line in sys.stdin:
        count = json.loads(line)["children"]
        configs = [pyspawner.SandboxConfig(network=network(number)) for number in range(count)]
        started = time.perf_counter()
        children = [client.spawn_child([], sandbox_config=config) for config in configs]
        for child in children:
            child.stdin.close()
        codes = [child.wait(0)[1] for child in children]
        ended = time.perf_counter()
        failed = [child.stderr.read().decode() for child, code in zip(children, codes, strict=True) if code]
        for child in children:
            child.stdout.close()
            child.stderr.close()
        answer = {"error": failed[0]} if failed else {"milliseconds": 1000 * (ended - started) / count}
        print(json.dumps(answer), flush=True)
    client.close()
