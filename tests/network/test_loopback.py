"""``NetworkConfig.loopback()``: a network that ends in the child."""

from __future__ import annotations

import pytest
from managed_support import SERVE, children, documented, left_in

import netns
import pyspawner
from internet import HOST, INTERNAL, METADATA, OTHER, PUBLIC, SPECIAL, targets

LOOPBACK = pyspawner.SandboxConfig(network=pyspawner.NetworkConfig.loopback())
OWN = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
NOT_OWN = ("tcp/9999", "udp/9999")

CONVERSATION = """
import socket, threading
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.create_server((address, 0), family=family) as server:
    def serve():
        connection, peer = server.accept()
        with connection:
            connection.sendall(connection.recv(100).upper() + peer[0].encode())
    threading.Thread(target=serve).start()
    with socket.create_connection(server.getsockname()[:2], timeout=60) as caller:
        caller.sendall(b"hello ")
        answer = ""
        while some := caller.recv(100):
            answer += some.decode()
"""


def test_lo_is_up_with_both_addresses_and_alone(caller):
    with children(caller, LOOPBACK) as [child]:
        view = child.namespace.look()
        assert set(view.interfaces) == {"lo"}
        assert view.is_up("lo")
        assert sorted(view.addresses("lo")) == ["127.0.0.1/8", "::1/128"]
        assert view.routes == []


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_server_in_the_child_is_called_by_the_child(caller, address):
    with children(caller, LOOPBACK) as [child]:
        assert child.run(CONVERSATION, address=address) == f"HELLO {address}"


def test_all_of_its_loopback_is_the_childs_own(world, caller):
    world.forget()
    with children(caller, LOOPBACK, LOOPBACK) as (child, sibling):
        assert child.reached(targets(OWN, NOT_OWN)) == [], "nobody serves there"
        child.run(SERVE)
        assert child.reached(targets(OWN, NOT_OWN), seconds=30) == targets(OWN, NOT_OWN)
        assert sibling.reached(targets(OWN, NOT_OWN)) == []
        callers = {peer for _, peer in child.run("answer = heard")}
        assert callers == {"::1", "::ffff:127.0.0.1"}
    assert world.host.calls() == []


def test_nobody_else_is_reached_and_the_error_comes_at_once(world, caller):
    everybody = targets([*PUBLIC, *SPECIAL, METADATA, *INTERNAL, *OTHER, *HOST], ["tcp/80", "udp/53"])
    everybody += ["udp/9999 224.0.0.1", "udp/9999 255.255.255.255", "tcp/80 ::ffff:10.0.0.5"]
    with children(caller, LOOPBACK, documented()) as (child, unmanaged):
        assert unmanaged.reached(everybody[:2], seconds=30) == everybody[:2]
        world.forget()
        assert {
            target: word
            for target, word in child.probe(everybody, seconds=60).items()
            if word != "unreachable"
        } == {}
    for place in (world.internet, world.internal, world.other):
        assert place.packets() == set()


def test_nothing_is_made_on_the_host(caller, host_view):
    with children(caller, LOOPBACK):
        assert set(caller.namespace.look().interfaces) == host_view


@pytest.fixture
def host_view(caller):
    return set(caller.namespace.look().interfaces)


def test_no_right_is_needed_and_no_forwarding(world, tmp_path):
    prefix = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin", "env", "PATH=/nonexistent"]
    with netns.new() as namespace, netns.Caller(namespace, prefix=prefix) as caller:
        with children(caller, LOOPBACK) as [child]:
            assert child.run(CONVERSATION, address="127.0.0.1") == "HELLO 127.0.0.1"
        assert set(namespace.look().interfaces) == {"lo"}
        assert left_in(namespace) == []
