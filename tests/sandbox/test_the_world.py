"""The world of ``internet.py`` is open: what a test finds closed there was closed by what it tests."""

from __future__ import annotations

import json

import pytest

import internet
import internet_server
import netns
import pyspawner
import support
from internet import HOST, INTERNAL, OTHER, PUBLIC, SPECIAL, Seen, probe_from, targets

EVERYBODY = PUBLIC + SPECIAL + INTERNAL + OTHER + HOST
PORTS = [f"tcp/{port}" for port in (*internet_server.HTTP_PORTS, 53, 9999)] + ["udp/53", "udp/9999"]
TO_MANY = ["udp/9999 224.0.0.1", "udp/9999 10.66.0.255", "udp/9999 255.255.255.255", "udp/9999 ff02::1%eth0"]
MANY = 64

LOOK = """
import http.client, json, probes
connection = http.client.HTTPConnection("93.184.215.14", timeout=30)
connection.request("GET", "/")
names = {name: probes.look_up(name, "1.1.1.1") for name in ("example.org", "internal.example", "nobody.example")}
print(json.dumps([json.loads(connection.getresponse().read()), names]))
"""


@pytest.fixture(scope="module")
def guest(world):
    with world.guest() as guest:
        yield guest


@pytest.fixture(autouse=True)
def nobody_remembers_the_last_test(world):
    world.forget()


def unreached(words: dict[str, str]) -> dict[str, str]:
    return {target: word for target, word in words.items() if word != "reached"}


def test_everybody_is_reached_by_every_protocol(guest):
    assert unreached(probe_from(guest, targets(EVERYBODY), seconds=30)) == {}


def test_every_port_answers(guest):
    everywhere = [addresses[0] for addresses in (PUBLIC, INTERNAL, OTHER, HOST)] + ["::ffff:10.0.0.5"]
    assert unreached(probe_from(guest, targets(everywhere, PORTS), seconds=30)) == {}


def test_the_host_hears_what_is_for_many(world, guest):
    assert unreached(probe_from(guest, TO_MANY, seconds=30)) == {}
    called = {call.at for call in world.host.calls()}
    assert called == {"224.0.0.1", "10.66.0.255", "255.255.255.255", "ff02::1"}


def test_who_has_called_is_remembered(world, guest):
    probe_from(guest, ["tcp/80 10.0.0.5", "udp/53 fd00:5::5", "udp/7 10.0.0.5", "icmp 10.0.0.5"])
    calls = [Seen("tcp", 80, "10.0.0.5", "10.66.0.2"), Seen("udp", 53, "fd00:5::5", "fd66::2")]
    assert sorted(world.internal.calls()) == calls
    assert world.internal.packets() == {
        *calls,
        Seen("udp", 7, "10.0.0.5", "10.66.0.2"),
        Seen("icmp", 0, "10.0.0.5", "10.66.0.2"),
    }
    assert world.other.packets() == set()
    world.forget()
    assert (world.internal.calls(), world.internal.packets()) == ([], set())


@pytest.mark.parametrize(("source", "address"), [("10.9.9.9", "10.0.0.5"), ("fd99::9", "fd00:5::5")])
def test_a_guest_can_call_under_the_address_of_somebody_else(world, guest, source, address):
    guest.run(*internet.send_as(source, f"udp/9999 {address}"))
    assert netns.eventually(lambda: world.internal.calls() == [Seen("udp", 9999, address, source)])


def test_the_host_forwards_only_if_it_shall(world, guest):
    try:
        for forwarded, not_forwarded in (("10.0.0.5", "fd00:5::5"), ("fd00:5::5", "10.0.0.5")):
            world.forward(ipv4=forwarded == "10.0.0.5", ipv6=forwarded != "10.0.0.5")
            assert probe_from(guest, [f"tcp/80 {forwarded}"], seconds=30) == {
                f"tcp/80 {forwarded}": "reached"
            }
            assert probe_from(guest, [f"tcp/80 {not_forwarded}"]) == {f"tcp/80 {not_forwarded}": "timeout"}
    finally:
        world.forward()


def test_the_others_reach_a_guest(world, guest):
    with netns.echo_server(guest, "10.66.0.2") as (port, who_called):
        target = f"tcp/{port} 10.66.0.2"
        assert probe_from(world.other.namespace, [target], seconds=30) == {target: "reached"}
        assert who_called() == "81.2.69.20\n"


def test_a_child_gets_answers(world):
    sandbox = pyspawner.SandboxConfig(network=pyspawner.NetworkConfig())
    answer, names = json.loads(world.caller(support.run, LOOK, sandbox=sandbox).text)
    assert answer == {"place": "Internet", "port": 80, "at": "93.184.215.14", "caller": "192.168.123.2"}
    assert names == {"example.org": ["93.184.215.14"], "internal.example": ["10.0.0.5"], "nobody.example": []}


def test_many_children_call_at_once(world):
    networks = [
        pyspawner.NetworkConfig(f"veth-{n}", "eth0", f"10.77.{n}.1", f"10.77.{n}.2") for n in range(MANY)
    ]
    sandboxes = [pyspawner.SandboxConfig(network=network) for network in networks]
    everywhere = targets(["93.184.215.14", "10.0.0.5", "192.168.1.10"])
    answers = world.caller(internet.probe_at_once, [(each, everywhere) for each in sandboxes], seconds=30)
    assert [unreached(words) for words in answers] == [{}] * MANY
    callers = {call.caller for call in world.internal.calls()}
    assert callers == {network.child_ipv4_address for network in networks}
