"""Many children with managed networks, at once and one after the other; and how much each may use."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest
from late_answers import late_server
from managed_support import (
    FETCH,
    children,
    kill_child,
    left_open,
    managed,
    router,
    run_at_once,
    spawn_all,
    unreached,
)

import pyspawner
from internet import HOST_PUBLIC, PUBLIC, targets
from netns import eventually

MANY = 64
WEB4, DNS4, WEB6, DNS6 = PUBLIC[0], PUBLIC[1], PUBLIC[3], PUBLIC[4]
ONE_CHILD = {"subnet": "10.9.8.0/29", "subnet6": "fd99::/125"}
THREE_CHILDREN = {"subnet": "10.9.8.0/28", "subnet6": "fd99::/124"}


def test_many_children_fetch_at_once(world, caller):
    world.forget()
    with children(caller, *[managed()] * MANY) as all_:
        for address, seen in ((WEB4, HOST_PUBLIC[0]), (WEB6, HOST_PUBLIC[1])):
            answers = run_at_once(all_, FETCH, address=address)
            assert answers == [{"place": "Internet", "port": 80, "at": address, "caller": seen}] * MANY
        addresses = [address for child in all_ for address in child.addresses]
        assert len(set(addresses)) == len(addresses) == 2 * MANY
        between = router(all_[0])
        assert len(between.look().interfaces) == MANY + 2
    assert len([call for call in world.internet.calls() if call.port == 80]) == 2 * MANY
    assert eventually(lambda: set(between.look().interfaces) == {"lo", "uplink"})
    assert caller(spawn_all, [managed()]) == ["works\n"]


# Policies.


def policies(first: int, number: int) -> list[pyspawner.SandboxConfig]:
    return [managed(deny=(f"198.51.100.{n % 250}:{n + 1}",), dns=()) for n in range(first, first + number)]


def test_each_child_is_judged_by_its_own_policy_while_others_come_and_go(caller):
    everywhere = targets([WEB4, DNS4, WEB6, DNS6], ["tcp/80", "tcp/443"])
    only_web, no_web = managed(WEB4, f"[{WEB6}]"), managed(deny=(WEB4, f"[{WEB6}]"), dns=())
    with children(caller, only_web, no_web) as (first, second):

        def check() -> None:
            assert first.reached(everywhere) == targets([WEB4, WEB6], ["tcp/80", "tcp/443"]) or first.reached(
                everywhere
            ) == [target for target in everywhere if target.split()[1] in (WEB4, WEB6)]
            assert second.reached(everywhere) == [
                target for target in everywhere if target.split()[1] in (DNS4, DNS6)
            ]

        check()
        # More than there are numbers for policies.
        assert caller(spawn_all, policies(0, 150)) == ["works\n"] * 150
        check()
        assert caller(spawn_all, policies(150, 150)) == ["works\n"] * 150
        check()
        with children(caller, no_web, only_web, managed(DNS4)) as (third, fourth, fifth):
            check()
            assert third.reached(everywhere) == second.reached(everywhere)
            assert fourth.reached(everywhere) == first.reached(everywhere)
            assert fifth.reached(everywhere) == targets([DNS4], ["tcp/80", "tcp/443"])
            chains = router(first).run("nft", "list", "chains").count("chain policy_")
            assert chains < 60, "those that nobody has are forgotten"


# A place that had another child.

BEGIN = """
import socket
sender = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
sender.settimeout(60)
sender.bind(("", 4444))
sender.connect((address, 7777))
sender.send(b"hello")
answer = sender.recv(100).decode()
"""

LISTEN = """
import socket
sender = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("", 4444))
"""

HEAR = """
sender.settimeout(seconds)
try:
    answer = sender.recv(100).decode()
except TimeoutError:
    answer = None
"""

IN_EACH_FAMILY = pytest.mark.parametrize(("address", "index"), [(WEB4, 0), (WEB6, 1)])


def known(namespace, address: str) -> list[str]:
    """The connections that a namespace remembers of an address."""
    family = "ipv6" if ":" in address else "ipv4"
    listed = namespace.run("cat", "/proc/net/nf_conntrack").splitlines()
    return [
        line for line in listed if line.startswith(family) and f"src={ip_address(address).exploded} " in line
    ]


@pytest.fixture
def answer_late(world):
    with late_server(world.internet.namespace) as answer_late:
        yield answer_late


@pytest.mark.parametrize("end", ["ends", "is killed"])
@IN_EACH_FAMILY
def test_what_a_child_has_begun_is_forgotten_when_its_place_is_used_again(
    own_caller, answer_late, address, index, end
):
    with children(own_caller, managed(**ONE_CHILD)) as [first]:
        own, between = first.addresses[index], router(first)
        assert first.run(BEGIN, address=address) == "at once"
        assert len(known(between, own)) == 1
        if end == "is killed":
            own_caller(kill_child, first.pid)
    with children(own_caller, managed(**ONE_CHILD)) as [second]:
        assert second.addresses[index] == own
        assert known(between, own) == []


@IN_EACH_FAMILY
def test_late_answers_reach_the_child_that_asked_and_not_the_next(own_caller, answer_late, address, index):
    with children(own_caller, managed(**ONE_CHILD)) as [first]:
        first.run(BEGIN, address=address)
        answer_late()
        assert first.run(HEAR, seconds=60) == "late"
    with children(own_caller, managed(**ONE_CHILD)) as [second]:
        second.run(LISTEN, address=address)
        answer_late()
        # What the server has sent came before this.
        assert second.fetch(address)["place"] == "Internet"
        assert second.run(HEAR, seconds=0.5) is None


@pytest.mark.parametrize("end", ["ends", "is killed"])
@IN_EACH_FAMILY
def test_what_others_have_begun_is_not_forgotten_when_a_child_goes(
    own_caller, answer_late, address, index, end
):
    with children(own_caller, managed(**THREE_CHILDREN)) as [stays]:
        stays.run(BEGIN, address=address)
        with children(own_caller, managed(**THREE_CHILDREN)) as [goes]:
            goes.run(BEGIN, address=address)
            gone = goes.addresses[index]
            assert len(known(router(stays), gone)) == 1
            if end == "is killed":
                own_caller(kill_child, goes.pid)
        # Whoever is spawned next takes what has become free.
        own_caller(spawn_all, [managed(**THREE_CHILDREN)] * 3)
        assert known(router(stays), gone) == []
        assert len(known(router(stays), stays.addresses[index])) == 1
        answer_late()
        assert stays.run(HEAR, seconds=5) == "late"


def test_a_place_works_at_once_for_a_child_with_another_policy(own_caller):
    everywhere = targets([WEB4, DNS4, WEB6, DNS6], ["tcp/80", "udp/53", "icmp"])
    for n in range(6):
        allowed = [WEB4, f"[{WEB6}]"] if n % 2 else [DNS4, f"[{DNS6}]"]
        with children(own_caller, managed(*allowed, **ONE_CHILD)) as [child]:
            expected = [t for t in everywhere if t.split()[1] in ((WEB4, WEB6) if n % 2 else (DNS4, DNS6))]
            assert child.reached(everywhere, seconds=1) == expected, n
            own_caller(kill_child, child.pid)


def test_a_client_has_room_for_255_children_one_after_the_other_and_again(caller):
    before = caller(left_open)
    assert caller(spawn_all, [managed()] * 300) == ["works\n"] * 300
    assert eventually(lambda: caller(left_open) == before)


# How much.

DOWNLOAD = """
import socket, time
size = 500_000
with socket.create_connection((address, 9999), timeout=120) as connection:
    begun = time.monotonic()
    import threading
    def send():
        connection.sendall(bytes(size))
    sender = threading.Thread(target=send)
    sender.start()
    left = size
    while left:
        left -= len(connection.recv(65536))
    sender.join()
    answer = time.monotonic() - begun
"""


@pytest.mark.parametrize("address", [WEB4, WEB6])
def test_a_bandwidth_is_kept(caller, address):
    with children(caller, managed(bandwidth=100_000), managed()) as (slow, fast):
        # Of 500,000 bytes, those of a second and 65,536 more may come at once.
        assert slow.run(DOWNLOAD, address=address) > 3.2
        assert fast.run(DOWNLOAD, address=address) < 3


def test_a_bandwidth_is_of_each_child_for_itself(caller):
    with children(caller, *[managed(bandwidth=100_000)] * 4) as all_:
        begun = time.monotonic()
        run_at_once(all_, DOWNLOAD, address=WEB4)
        # All together would take 20 seconds.
        assert 3.2 < time.monotonic() - begun < 15


CONNECT = """
import errno, socket
reached, word = 0, None
for n in range(number):
    # The kernel remembers a connection when it is closed, too.
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as caller:
        caller.settimeout(60)
        caller.bind(("", 20000 + n))
        caller.connect((address, 9999))
        try:
            caller.send(b"hello")
            caller.recv(100)
            reached += 1
        except OSError as error:
            word = errno.errorcode[error.errno]
            break
answer = [reached, word]
"""


def test_a_child_has_so_many_connections_and_no_more_and_others_have_theirs(caller):
    with children(caller, managed(), managed()) as (child, sibling):
        assert child.run(CONNECT, address=WEB4, number=1000) == [1000, None]
        assert child.run(CONNECT, address=WEB6, number=1000) == [24, "EACCES"]
        assert sibling.run(CONNECT, address=WEB4, number=50) == [50, None]
        assert unreached(sibling.probe(["tcp/80 1.1.1.1"], seconds=30)) == {}
        assert child.reached(["tcp/80 1.1.1.1"]) == []
