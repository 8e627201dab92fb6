"""The layer ``network``: a ``lo`` that is down, or one end of a veth pair.

Every caller here is in a network namespace of the test's own.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from dataclasses import replace

import pytest

import netns
import pyspawner
import support
from netns import Caller, Namespace, echo_server, eventually

NETWORK = pyspawner.NetworkConfig()
NETWORKED = pyspawner.SandboxConfig(network=NETWORK)
OTHER = pyspawner.NetworkConfig(
    kernel_veth_name="a-name-of-15-by",
    child_veth_name=NETWORK.child_veth_name,
    kernel_ipv4_address="10.0.77.254",
    child_ipv4_address="10.0.77.1",
)

CALL = """
import socket
with socket.create_connection((address, port), timeout=30) as connection:
    connection.sendall(b"hello")
    print(connection.recv(100).decode())
"""

# What runs in the caller.


def left_open(client: pyspawner.Client) -> tuple[set[int], set[int]]:
    """The caller's processes and descriptors."""
    del client
    return support.children_of_this_process(), set(support.open_descriptors())


def kill_zygote(client: pyspawner.Client) -> None:
    """Leave the client without the process that makes children."""
    os.kill(client.zygote_pid, signal.SIGKILL)


# Callers.


@pytest.fixture(scope="module")
def caller():
    """Root, in a namespace of its own."""
    with netns.new() as namespace, Caller(namespace) as caller:
        yield caller


@pytest.fixture(scope="module")
def unprivileged():
    """A caller that lacks CAP_NET_ADMIN, as root in a Docker container does."""
    prefix = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"]
    with netns.new() as namespace, Caller(namespace, prefix=prefix) as caller:
        yield caller


@pytest.fixture(scope="module")
def without_zygote():
    """A caller whose client cannot make anything any more."""
    with netns.new() as namespace, Caller(namespace) as caller:
        caller(kill_zygote)
        yield caller


def is_empty(namespace: Namespace) -> bool:
    return set(namespace.look().interfaces) == {"lo"}


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_namespace(caller):
    """After every test, the caller's namespace is empty, and it has no process and no descriptor more."""
    before = caller(left_open)
    yield
    assert eventually(lambda: is_empty(caller.namespace)), caller.namespace.look()
    assert caller(left_open) == before


# The pair.


def test_the_defaults_are_the_documented_ones():
    assert (NETWORK.kernel_veth_name, NETWORK.child_veth_name) == ("veth-pyspawn", "veth-pyspawn-c")
    assert (NETWORK.kernel_ipv4_address, NETWORK.child_ipv4_address) == ("192.168.123.1", "192.168.123.2")


@pytest.mark.parametrize("network", [NETWORK, OTHER], ids=["default", "own names"])
def test_the_pair_has_its_names_and_addresses_and_is_up(caller, network):
    kernel, [child] = caller(netns.look_around, pyspawner.SandboxConfig(network=network))
    assert set(kernel.interfaces) == {"lo", network.kernel_veth_name}
    assert set(child.interfaces) == {"lo", network.child_veth_name}
    assert kernel.kind(network.kernel_veth_name) == child.kind(network.child_veth_name) == "veth"
    assert kernel.addresses(network.kernel_veth_name) == [f"{network.kernel_ipv4_address}/24"]
    assert child.addresses(network.child_veth_name) == [f"{network.child_ipv4_address}/24"]
    assert kernel.is_up(network.kernel_veth_name)
    assert child.is_up(network.child_veth_name)
    assert child.is_up("lo")


def test_the_default_route_leads_through_the_kernels_end(caller):
    kernel, [child] = caller(netns.look_around, NETWORKED)
    [default] = [route for route in child.routes if route["dst"] == "default"]
    assert (default["gateway"], default["dev"]) == (NETWORK.kernel_ipv4_address, NETWORK.child_veth_name)
    assert [route["dst"] for route in kernel.routes] == ["192.168.123.0/24"], "the caller's own has no more"


def test_the_child_reaches_its_caller(caller):
    with echo_server(caller.namespace, "0.0.0.0") as (port, who_called):
        outcome = caller(support.run, CALL, sandbox=NETWORKED, address=NETWORK.kernel_ipv4_address, port=port)
        assert outcome.text == "HELLO\n"
        assert who_called() == NETWORK.child_ipv4_address + "\n"


def test_the_caller_reaches_its_child(caller):
    answer, who_called = caller(netns.call_child, NETWORKED, NETWORK.child_ipv4_address)
    assert (answer, who_called) == (b"HELLO", NETWORK.kernel_ipv4_address)


def test_where_the_host_forwards_the_child_reaches_the_internet(caller):
    host = caller.namespace
    with netns.new() as internet:
        host.ip(f"link add uplink type veth peer name eth0 netns {internet.path}")
        try:
            host.ip("address add 198.51.100.1/24 dev uplink")
            host.ip("link set uplink up")
            host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
            internet.ip("address add 198.51.100.2/24 dev eth0")
            internet.ip("link set eth0 up")
            internet.ip("route add 192.168.123.0/24 via 198.51.100.1")
            with echo_server(internet, "198.51.100.2") as (port, who_called):
                outcome = caller(support.run, CALL, sandbox=NETWORKED, address="198.51.100.2", port=port)
                assert outcome.text == "HELLO\n"
                assert who_called() == NETWORK.child_ipv4_address + "\n"
        finally:
            host.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
            host.ip("link delete uplink")


def test_two_children_at_once_each_have_a_pair_of_their_own(caller):
    other = pyspawner.SandboxConfig(network=OTHER)
    kernel, [first, second] = caller(netns.look_around, NETWORKED, other)
    assert set(kernel.interfaces) == {"lo", NETWORK.kernel_veth_name, OTHER.kernel_veth_name}
    assert first.addresses(NETWORK.child_veth_name) == [f"{NETWORK.child_ipv4_address}/24"]
    assert second.addresses(OTHER.child_veth_name) == [f"{OTHER.child_ipv4_address}/24"]


def test_the_pair_goes_with_the_child(caller):
    for _ in range(3):
        kernel, _ = caller(netns.look_around, NETWORKED)
        assert NETWORK.kernel_veth_name in kernel.interfaces
        assert eventually(lambda: is_empty(caller.namespace))


# What was there before.


def test_a_stale_pair_of_the_same_name_is_deleted_first(caller):
    name = NETWORK.kernel_veth_name
    caller.namespace.ip(f"link add {name} type veth peer name stale-peer")
    caller.namespace.ip(f"address add 10.9.9.9/24 dev {name}")
    kernel, [child] = caller(netns.look_around, NETWORKED)
    assert set(kernel.interfaces) == {"lo", name}, "the stale pair's other end went with it"
    assert kernel.addresses(name) == [f"{NETWORK.kernel_ipv4_address}/24"]
    assert child.addresses(NETWORK.child_veth_name) == [f"{NETWORK.child_ipv4_address}/24"]


def test_an_interface_of_another_kind_is_refused_and_stays(caller):
    name = NETWORK.kernel_veth_name
    caller.namespace.ip(f"link add {name} type bridge")
    try:
        before = caller.namespace.look().interfaces
        with pytest.raises(pyspawner.NetlinkError, match="stale interface") as caught:
            caller(support.run, "print('ran')", sandbox=NETWORKED)
        assert caller.namespace.look().interfaces == before
    finally:
        caller.namespace.ip(f"link delete {name}")
    assert isinstance(caught.value, OSError)
    assert (caught.value.layer, caught.value.code) == ("network", errno.EEXIST)
    assert caught.value.errno == errno.EEXIST
    assert "kernel_veth_name" in caught.value.hint
    assert caller(support.run, "print('works')", sandbox=NETWORKED).text == "works\n"


def test_the_childs_name_may_be_taken_in_the_callers_namespace(caller):
    caller.namespace.ip(f"link add {NETWORK.child_veth_name} type bridge")
    try:
        kernel, [child] = caller(netns.look_around, NETWORKED)
        assert kernel.kind(NETWORK.child_veth_name) == "bridge"
        assert child.kind(NETWORK.child_veth_name) == "veth"
    finally:
        caller.namespace.ip(f"link delete {NETWORK.child_veth_name}")


# No network.

CONNECT = """
import errno, socket
with socket.socket(family, kind) as connection:
    connection.settimeout(30)
    print(errno.errorcode.get(connection.connect_ex((address, 9)), "connected"))
"""


def test_without_a_network_there_is_only_a_lo_that_is_down(caller):
    kernel, [child] = caller(netns.look_around, support.SANDBOX)
    assert set(child.interfaces) == {"lo"}
    assert not child.is_up("lo")
    assert child.routes == []
    assert set(kernel.interfaces) == {"lo"}


@pytest.mark.parametrize(
    ("address", "without_network", "with_network"),
    [
        ("127.0.0.1", "ENETUNREACH", "ECONNREFUSED"),
        (NETWORK.kernel_ipv4_address, "ENETUNREACH", "ECONNREFUSED"),
        # Linux finds no address of its own to call from before it looks for a route.
        ("::1", "EADDRNOTAVAIL", "ECONNREFUSED"),
        ("2001:db8::1", "EADDRNOTAVAIL", "ENETUNREACH"),
    ],
)
def test_connect_reaches_nothing_without_a_network(caller, address, without_network, with_network):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def connect(kind: socket.SocketKind, sandbox: pyspawner.SandboxConfig) -> str:
        names = {"family": family, "kind": kind, "address": address}
        return caller(support.run, CONNECT, sandbox=sandbox, **names).text.strip()

    assert connect(socket.SOCK_STREAM, support.SANDBOX) == without_network
    assert connect(socket.SOCK_DGRAM, support.SANDBOX) == without_network
    # With a network there is a lo, and a kernel at the other end. A datagram is refused only once sent.
    assert connect(socket.SOCK_STREAM, NETWORKED) == with_network
    assert connect(socket.SOCK_DGRAM, NETWORKED) == with_network.replace("ECONNREFUSED", "connected")


@pytest.mark.parametrize("sandbox", [support.SANDBOX, NETWORKED], ids=["no network", "network"])
def test_an_abstract_unix_socket_of_the_host_is_out_of_reach(caller, sandbox):
    # These belong to the network namespace and know no file permissions.
    outcome, on_the_host = caller(call_abstract_socket, sandbox)
    assert on_the_host == 0
    assert outcome.text.strip() == "ECONNREFUSED"


def call_abstract_socket(
    client: pyspawner.Client, sandbox: pyspawner.SandboxConfig
) -> tuple[support.Outcome, int]:
    source = """
        import errno, socket
        with socket.socket(socket.AF_UNIX) as connection:
            print(errno.errorcode.get(connection.connect_ex(name), "connected"))
    """
    name = f"\0pyspawner-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as connection:
        server.bind(name)
        server.listen()
        return support.run(client, source, sandbox=sandbox, name=name), connection.connect_ex(name)


# What is refused.


def with_field(field: str, value: str) -> pyspawner.NetworkConfig:
    return replace(NETWORK, **{field: value})


BAD_NAMES = ["x" * 16, "é" * 8, "", "a/b", ".", "..", "lo", "a b", "a\tb", "a:b", "veth%d", "a\0b"]
BAD_ADDRESSES = ["", "192.168.123", "192.168.123.256", "192.168.123.1/24", "192.168.123.01", " 192.168.123.1"]
BAD_ADDRESSES += ["localhost", "::1", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"]
BAD_ADDRESSES += ["192.168.123.0", "192.168.123.255"]
BAD_CONFIGS = [
    *((f, v, f) for f in ("kernel_veth_name", "child_veth_name") for v in BAD_NAMES),
    *((f, v, f) for f in ("kernel_ipv4_address", "child_ipv4_address") for v in BAD_ADDRESSES),
    ("kernel_veth_name", NETWORK.child_veth_name, "different names"),
    ("child_ipv4_address", NETWORK.kernel_ipv4_address, "both 192.168.123.1"),
    ("child_ipv4_address", "192.168.124.2", "different /24"),
    ("kernel_ipv4_address", "192.169.123.1", "different /24"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_CONFIGS)
def test_what_makes_no_sense_is_refused_before_anything_is_made(without_zygote, field, value, message):
    # A client whose zygote is dead can make nothing: see the next test.
    sandbox = pyspawner.SandboxConfig(network=with_field(field, value))
    with pytest.raises(ValueError, match=message):
        without_zygote(support.run, "print('ran')", sandbox=sandbox)
    assert is_empty(without_zygote.namespace)


def test_what_makes_sense_gets_as_far_as_the_zygote(without_zygote):
    with pytest.raises(pyspawner.ZygoteDiedError):
        without_zygote(support.run, "print('ran')", sandbox=NETWORKED)
    assert is_empty(without_zygote.namespace)


def test_after_a_refusal_the_next_spawn_works(caller):
    sandbox = pyspawner.SandboxConfig(network=with_field("child_veth_name", "lo"))
    with pytest.raises(ValueError, match="child_veth_name"):
        caller(support.run, "print('ran')", sandbox=sandbox)
    assert caller(support.run, "print('works')", sandbox=NETWORKED).text == "works\n"


@pytest.mark.parametrize("stale", [False, True], ids=["fresh", "with a stale pair"])
def test_without_net_admin_the_error_says_what_is_missing(unprivileged, stale):
    name = NETWORK.kernel_veth_name
    if stale:
        unprivileged.namespace.ip(f"link add {name} type veth peer name stale-peer")
    try:
        before = unprivileged(left_open), set(unprivileged.namespace.look().interfaces)
        with pytest.raises(pyspawner.NetlinkError) as caught:
            unprivileged(support.run, "print('ran')", sandbox=NETWORKED)
        assert (unprivileged(left_open), set(unprivileged.namespace.look().interfaces)) == before
    finally:
        if stale:
            unprivileged.namespace.ip(f"link delete {name}")
    assert isinstance(caught.value, OSError)
    assert (caught.value.layer, caught.value.code) == ("network", errno.EPERM)
    assert "CAP_NET_ADMIN" in caught.value.hint
    assert caught.value.hint in str(caught.value)


def test_without_net_admin_children_without_a_network_work(unprivileged):
    assert unprivileged(support.run, "print('works')").text == "works\n"


def test_a_spawn_that_fails_after_the_pair_was_made_takes_it_back():
    with netns.new() as namespace, Caller(namespace, prelude=netns.refuse_keyctl) as caller:
        before = caller(left_open)
        for _ in range(2):
            with pytest.raises(pyspawner.SandboxError) as caught:
                caller(support.run, "print('ran')", sandbox=NETWORKED)
            assert caught.value.layer == "session", "a layer after the network"
            assert not isinstance(caught.value, pyspawner.NetlinkError)
            assert eventually(lambda: is_empty(namespace))
        assert caller(left_open) == before


# What the child may do with its end.

ATTACK = """
import errno, fcntl, socket, struct

def interface(request, form, *values):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, request, struct.pack("16s" + form, name.encode(), *values))

def netlink(kind, body):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(body), kind, 5, 1, 0) + body)
        refusal = -struct.unpack_from("=i", kernel.recv(4096), 16)[0]
        if refusal:
            raise OSError(refusal, "")

try:
    eval(attack)
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    print("done")
"""

# Python, and the layers that stop it, each alone, with the answer that it gives then.
BY_CAPABILITIES = {"drop_capabilities": "EPERM", "setuid": "EPERM"}
BY_BOTH = {**BY_CAPABILITIES, "seccomp": "EPERM"}
BY_FAMILY = {**BY_CAPABILITIES, "seccomp": "EAFNOSUPPORT"}
NEW_ADDRESS = (
    "struct.pack('=BBBBIHH4s', 2, 24, 0, 0, socket.if_nametoindex(name), 8, 2, bytes([10, 9, 9, 9]))"
)
DEFAULT_ROUTE = "struct.pack('=BBBBBBBBI', 2, 0, 0, 0, 254, 0, 255, 0, 0)"
ATTACKS = {
    "raw socket": ("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", BY_BOTH),
    "raw IPv6 socket": ("socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)", BY_BOTH),
    "packet socket": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)", BY_FAMILY),
    "RTM_NEWADDR": (f"netlink(20, {NEW_ADDRESS})", BY_FAMILY),
    "RTM_DELROUTE": (f"netlink(25, {DEFAULT_ROUTE})", BY_FAMILY),
    "SIOCSIFADDR": ("interface(0x8916, 'HH4s8x', socket.AF_INET, 0, bytes([10, 9, 9, 9]))", BY_CAPABILITIES),
    "SIOCSIFFLAGS": ("interface(0x8914, 'H14x', 0)", BY_CAPABILITIES),
    "SIOCSIFHWADDR": ("interface(0x8924, 'H14s', 1, bytes.fromhex('020000000001'))", BY_CAPABILITIES),
}


def attack(caller: Caller, name: str, sandbox: pyspawner.SandboxConfig) -> str:
    source, _ = ATTACKS[name]
    sandbox = replace(sandbox, network=NETWORK)
    outcome = caller(support.run, ATTACK, sandbox=sandbox, attack=source, name=NETWORK.child_veth_name)
    return outcome.text.strip()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_child_cannot_change_its_end(caller, name):
    assert attack(caller, name, support.only()) == "done", "without the layers"
    assert attack(caller, name, support.SANDBOX) in ATTACKS[name][1].values()


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name in ATTACKS for layer in ATTACKS[name][1]])
def test_one_layer_alone_keeps_the_child_from_changing_its_end(caller, name, layer):
    assert attack(caller, name, support.only(layer)) == ATTACKS[name][1][layer]
