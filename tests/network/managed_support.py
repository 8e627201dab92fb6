"""Children with a network that live as long as a test wants, and do what it says.

::

    with children(caller, managed(), managed(deny=["*"])) as (free, caught):
        assert free.probe(["tcp/80 93.184.215.14"]) == {"tcp/80 93.184.215.14": "reached"}
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import internet
import netns
import pyspawner
import support
from netns import Caller, Namespace

NAME = "eth0"
"""Of a child's interface, for it."""

_CONVERSE = """
import json, sys, textwrap, traceback
import probes
space = {"__name__": "__child__", "probes": probes}
for line in sys.stdin:
    source, names = json.loads(line)
    space.update(names, answer=None)
    try:
        exec(textwrap.dedent(source), space)
        said = [True, space["answer"]]
    except BaseException:
        said = [False, traceback.format_exc()]
    print(json.dumps(said), flush=True)
"""

PROBE = "answer = probes.attempt_all(targets, seconds)"

FETCH = """
import http.client, json
connection = http.client.HTTPConnection(address, 80, timeout=60)
connection.request("GET", "/")
answer = json.loads(connection.getresponse().read())
connection.close()
"""

SERVE = """
import socket, threading

heard = []
server = socket.create_server(("::", 9999), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100)
receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
receiver.bind(("::", 9999))

def accept():
    while True:
        connection, peer = server.accept()
        heard.append(["tcp", peer[0]])
        connection.close()

def receive():
    while True:
        datagram, peer = receiver.recvfrom(65536)
        heard.append(["udp", peer[0]])
        receiver.sendto(datagram, peer)

for serve in (accept, receive):
    threading.Thread(target=serve, daemon=True).start()
"""
"""Answer whoever calls port 9999, and remember it in ``heard``."""


def managed(*allow: str, **options: Any) -> pyspawner.SandboxConfig:
    return pyspawner.SandboxConfig(network=pyspawner.NetworkConfig.managed(allow, **options))


def managed_by(options: dict[str, Any]) -> pyspawner.SandboxConfig:
    return pyspawner.SandboxConfig(network=pyspawner.NetworkConfig.managed(**options))


def documented(n: int = 0) -> pyspawner.SandboxConfig:
    """A child whose packets nobody judges."""
    network = pyspawner.NetworkConfig(f"open-{n}", NAME, f"10.78.{n}.1", f"10.78.{n}.2")
    return pyspawner.SandboxConfig(network=network)


@dataclass(frozen=True)
class Child:
    """A child that does what it is told until it is let go."""

    caller: Caller
    pid: int

    @property
    def namespace(self) -> Namespace:
        return netns.of_process(self.pid)

    @property
    def addresses(self) -> list[str]:
        """Of IPv4, and of IPv6 if there is one."""
        return addresses_of(self.namespace, NAME)

    def run(self, source: str, **names: Any) -> Any:
        """Run source code; what it has in ``answer`` at its end."""
        return run_at_once([self], source, **names)[0]

    def probe(self, targets: Sequence[str], *, seconds: float = 2) -> dict[str, str]:
        """Try to reach targets; see ``probes.py``."""
        return self.run(PROBE, targets=list(targets), seconds=seconds)

    def reached(self, targets: Sequence[str], *, seconds: float = 2) -> list[str]:
        """Those of the targets that were reached."""
        return reached(self.probe(targets, seconds=seconds))

    def fetch(self, address: str) -> dict[str, Any]:
        return self.run(FETCH, address=address)


def run_at_once(children: Sequence[Child], source: str, **names: Any) -> list[Any]:
    """Let children of one caller run the same source code at the same time."""
    [caller] = {child.caller for child in children}
    answers = caller(_talk, [child.pid for child in children], source, names)
    for is_well, answer in answers:
        assert is_well, answer
    return [answer for _, answer in answers]


def reached(words: dict[str, str]) -> list[str]:
    return [target for target, word in words.items() if word == "reached"]


def unreached(words: dict[str, str]) -> dict[str, str]:
    return {target: word for target, word in words.items() if word != "reached"}


@contextlib.contextmanager
def children(
    caller: Caller, *sandboxes: pyspawner.SandboxConfig, of: str = ""
) -> Iterator[tuple[Child, ...]]:
    """Have a child in each sandbox, of the caller's first Client or of another one with a name."""
    begun: list[Child] = []
    try:
        for sandbox in sandboxes:
            begun.append(Child(caller, caller(_begin, sandbox, of)))
        yield tuple(begun)
    finally:
        caller(_end, [child.pid for child in begun])


@contextlib.contextmanager
def caller_of(
    namespace: Namespace, directory: Path, *, resolvers: Sequence[str] = ("1.1.1.1",), hosts: str = ""
) -> Iterator[Caller]:
    """Have a caller that finds ``resolvers`` in its ``/etc/resolv.conf``, and ``hosts`` in its ``/etc/hosts``."""
    (directory / "resolv.conf").write_text("".join(f"nameserver {address}\n" for address in resolvers))
    (directory / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
    mount = (
        'for name in resolv.conf hosts; do mount --bind "$0/$name" "/etc/$name" || exit 1; done; exec "$@"'
    )
    prefix = ["unshare", "--mount", "sh", "-c", mount, str(directory)]
    with Caller(namespace, prefix=prefix) as caller:
        yield caller


def router(child: Child) -> Namespace:
    """The namespace between a child and the host."""
    [gateway] = [route["gateway"] for route in child.namespace.look().routes if route["dst"] == "default"]
    all_ = [Namespace(path) for path in child.caller(_routers)]
    [found] = [each for each in all_ if gateway in addresses_in(each)]
    return found


def addresses_in(namespace: Namespace) -> list[str]:
    """All that can be called without an interface, and are not loopback."""
    view = namespace.look()
    found = [address.partition("/")[0] for name in view.interfaces for address in view.addresses(name)]
    return [address for address in found if address not in ("127.0.0.1", "::1") and "fe80" not in address]


def lead_to(child: Child) -> None:
    """Tell the host the way to a child, which by itself it does not know."""
    uplink = addresses_of(router(child), "uplink")
    child.caller.namespace.ip(
        *(f"route replace {address} via {hop}" for address, hop in zip(child.addresses, uplink, strict=True))
    )


def addresses_of(namespace: Namespace, interface: str) -> list[str]:
    """Without their prefixes, and without link-local ones."""
    found = [address.partition("/")[0] for address in namespace.look().addresses(interface)]
    return [address for address in found if not address.startswith("fe80")]


def let_all_through(child: Child) -> None:
    """Take all judgement of a child's Client away, and leave forwarding and masquerading."""
    commands = [f"flush chain inet pyspawner {chain}" for chain in ("from_children", "through", "to_router")]
    commands += [f"add rule inet pyspawner {chain} accept" for chain in ("through", "to_router")]
    router(child).run("nft", "-f", "-", stdin="\n".join(commands))
    host = child.caller.namespace
    chains = ("not_to_host", "to_host", "through")
    commands = [f"flush chain inet {table} {chain}" for table in tables(host) for chain in chains]
    host.run("nft", "-f", "-", stdin="\n".join(commands))


def tables(namespace: Namespace) -> list[str]:
    """Those of pyspawner."""
    listed = json.loads(namespace.run("nft", "-j", "list", "tables"))["nftables"]
    names = [entry["table"]["name"] for entry in listed if "table" in entry]
    return [name for name in names if name.startswith("pyspawner")]


def interfaces(namespace: Namespace) -> list[str]:
    """Those of pyspawner."""
    return [name for name in namespace.look().interfaces if name.startswith("psp")]


def left_in(namespace: Namespace) -> list[str]:
    """What pyspawner has in a namespace."""
    return tables(namespace) + interfaces(namespace)


# In the caller.

_clients: dict[str, pyspawner.Client] = {}
_children: dict[int, pyspawner.ChildProcess] = {}


def _begin(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig, of: str) -> int:
    if of and of not in _clients:
        _clients[of] = pyspawner.Client(child_main="support.run_source").__enter__()
    child = support.spawn(_clients.get(of, client), _CONVERSE, sandbox=sandbox)
    _children[child.pid] = child
    if isinstance(sandbox.network, pyspawner.NetworkConfig):
        # The others see to that themselves.
        internet.allow_pings(child.pid)
    return child.pid


def close_client(client: pyspawner.Client, of: str) -> None:
    """Close one that was made for :func:`children`."""
    _clients.pop(of).__exit__(None, None, None)


def _talk(
    client: pyspawner.Client, pids: Sequence[int], source: str, names: dict[str, Any]
) -> list[tuple[bool, Any]]:
    for pid in pids:
        stdin = _children[pid].stdin
        stdin.write(json.dumps([source, names]).encode() + b"\n")
        stdin.flush()
    return [json.loads(_children[pid].stdout.readline() or '[false, "it has ended"]') for pid in pids]


def _end(client: pyspawner.Client, pids: Sequence[int]) -> None:
    for pid in pids:
        child = _children.pop(pid, None)
        if child is not None:
            outcome = support.communicate(child)
            assert outcome.status == 0, outcome


def kill_child(client: pyspawner.Client, pid: int) -> None:
    """Kill and reap one."""
    child = _children.pop(pid)
    child.kill()
    outcome = support.communicate(child)
    assert outcome.exitcode == -9, outcome


def spawn_all(client: pyspawner.Client, sandboxes: Sequence[pyspawner.SandboxConfig]) -> list[str]:
    """Run a child in each sandbox, one after the other; their standard outputs."""
    return [support.run(client, "print('works')", sandbox=sandbox).text for sandbox in sandboxes]


def left_open(client: pyspawner.Client) -> tuple[set[int], dict[int, str]]:
    """The caller's processes and descriptors."""
    return support.children_of_this_process(), support.open_descriptors()


def _routers(client: pyspawner.Client) -> list[str]:
    own = os.stat("/proc/self/ns/net").st_ino
    found = {
        f"/proc/{os.getpid()}/fd/{number}": target
        for number, target in support.open_descriptors().items()
        if target.startswith("net:[")
    }
    return [path for path, target in found.items() if target != f"net:[{own}]"]
