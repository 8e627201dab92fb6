"""A managed network for callers that are not root: ``pasta``, and a firewall in the child's own network namespace.

The world is that of ``internet.py``. What the host would answer, ``pasta`` would reach: it opens its sockets there. So each refusal has
its control in ``test_without_the_firewall_everything_is_reached``.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import internet
import ordinary_user
import pyspawner
import rootless
import support
from netns import eventually

GATEWAYS = ("198.19.0.1", "fd70:7973:7061:776e::1")
DNS = ("1.1.1.1",)
PRIVATE = (
    "192.168.0.0/16",
    "172.16.0.0/12",
    "81.2.69.0/24",
    "198.18.0.0/15",
    "[fc00::/7]",
    "[2a02:6b8::/32]",
)

FETCH = """
import json, urllib.request
with urllib.request.urlopen(url, timeout=30) as answer:
    print(json.dumps(json.load(answer)))
"""
LOOK_UP = """
import socket
print(*sorted({info[4][0] for info in socket.getaddrinfo(name, 80)}))
"""
ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
    caller.settimeout(5)
    caller.connect(("93.184.215.14", 9999))
    answers = 0
    try:
        while answers < 200:
            caller.send(bytes(1000))
            answers += len(caller.recv(2000)) == 1000
    except (TimeoutError, PermissionError):
        # The answer was dropped, or the question at once.
        pass
print(answers)
"""


def managed(*allow: str, **options) -> pyspawner.SandboxConfig:
    network = pyspawner.NetworkConfig.managed(allow, **{"dns": DNS, **options})
    return pyspawner.SandboxConfig(network=network)


def only(words: dict[str, str]) -> set[str]:
    return set(words.values())


@pytest.fixture(scope="module")
def caller(world, user):
    with rootless.caller(world.host.namespace, user) as caller:
        yield caller


@pytest.fixture(autouse=True)
def nothing_is_left(world, caller):
    """After every test no pasta is there, and the caller has no process and no descriptor more; the host has no interface more."""
    world.forget()
    before = caller(rootless.left_open), set(world.host.namespace.look().interfaces)
    yield
    assert eventually(lambda: not rootless.pastas())
    assert (caller(rootless.left_open), set(world.host.namespace.look().interfaces)) == before


# What is reached.


@pytest.mark.parametrize("host", ["93.184.215.14", "[2606:2800:21f:cb07::14]"])
def test_a_child_fetches_from_the_internet(world, caller, host):
    outcome = caller(support.run, FETCH, sandbox=managed(), url=f"http://{host}/")
    assert '"place": "Internet"' in outcome.text
    [call] = world.internet.calls()
    assert call.caller in internet.HOST_PUBLIC, "the host's own address"


def test_all_protocols_are_let_through(caller):
    [words] = caller(rootless.probe, [managed()], internet.targets(internet.PUBLIC))
    assert only(words) == {"reached"}, words


def test_names_are_looked_up_by_the_resolvers_of_the_files(caller):
    outcome = caller(support.run, LOOK_UP, sandbox=managed(), name="example.org")
    assert outcome.text.split() == ["2606:2800:21f:cb07::14", "93.184.215.14"]


def test_the_layer_says_how(caller):
    assert caller(rootless.layer, managed()) == (
        "198.19.0.2 and fd70:7973:7061:776e::2 by pasta: the public Internet"
    )


def test_without_ipv6_there_is_none(caller):
    targets = ["tcp/80 93.184.215.14", "tcp/80 2606:2800:21f:cb07::14"]
    [words] = caller(rootless.probe, [managed(ipv6=False)], targets)
    assert words == dict(zip(targets, ["reached", "unreachable"], strict=True))


def test_a_host_without_ipv6_is_no_error(world, caller):
    host = world.host.namespace
    default = "default via 2a02:6b8:0:1::1"
    host.ip(f"route delete {default}")
    try:
        assert caller(rootless.layer, managed()) == "198.19.0.2 by pasta: the public Internet"
    finally:
        host.ip(f"route add {default}")


def test_eight_children_at_once_have_a_network_each(caller):
    targets = internet.targets(internet.PUBLIC, ["tcp/80"])
    for words in caller(rootless.probe, [managed()] * 8, targets):
        assert only(words) == {"reached"}, words


# What is not.

FORBIDDEN = internet.targets((*internet.HOST, *internet.INTERNAL, *internet.SPECIAL, *GATEWAYS))


def test_the_host_the_internal_network_and_metadata_are_refused(world, caller):
    [words] = caller(rootless.probe, [managed()], FORBIDDEN)
    assert "reached" not in only(words), words
    assert not world.host.calls()
    assert not world.internal.packets()
    assert not world.internet.packets()


def test_the_host_is_refused_whatever_is_allowed(world, caller):
    targets = internet.targets((*internet.HOST, *GATEWAYS, internet.METADATA))
    neighbours = internet.targets((*internet.OTHER, *internet.INTERNAL[1:]))
    [words] = caller(rootless.probe, [managed(*PRIVATE)], [*targets, *neighbours])
    assert {words[target] for target in neighbours} == {"reached"}, "the host's neighbours are allowed"
    assert "reached" not in {words[target] for target in targets}, words
    assert not world.host.calls()


def test_without_the_firewall_everything_is_reached(world, user):
    """The positive control: the same program without what pyspawner adds to it."""
    pasta = ["pasta", "--config-net", "-q", "-a", "198.19.0.2", "-n", "30", "-g", GATEWAYS[0], "--"]
    python = [ordinary_user.python(), f"{user.modules}/probes.py", "2"]
    targets = [f"tcp/80 {address}" for address in (GATEWAYS[0], internet.HOST[0], internet.INTERNAL[0])]
    tun = rootless.TUN.format(mode="666") + ' && exec "$@"'
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        tun,
        "sh",
        *ordinary_user.become(),
        *pasta,
        *python,
        *targets,
    ]
    words = world.host.namespace.run(*command)
    assert words.count("reached") == len(targets), words
    assert {call.at for call in world.host.calls()} == {"127.0.0.1", internet.HOST[0]}, "loopback too"


def test_nobody_reaches_a_child(world, caller):
    assert not caller(rootless.listen, managed(*PRIVATE), 7000)


def test_a_child_does_not_reach_another_one(caller):
    """Each has the same address, and finds itself there."""
    [first, second] = caller(rootless.probe, [managed(*PRIVATE)] * 2, ["tcp/7000 198.19.0.2"])
    assert only(first) == only(second) == {"refused"}


def test_only_what_is_allowed(world, caller):
    sandbox = managed("93.184.215.14:80/tcp", "10.0.0.0/8:443", dns=())
    reached = ["tcp/80 93.184.215.14", "tcp/443 10.0.0.5"]
    others = ["tcp/443 93.184.215.14", "udp/53 93.184.215.14", "icmp 93.184.215.14", "tcp/80 10.0.0.5"]
    others += ["tcp/80 1.1.1.1", "tcp/80 2606:2800:21f:cb07::14"]
    [words] = caller(rootless.probe, [sandbox], reached + others)
    assert [target for target, word in words.items() if word == "reached"] == reached


def test_nothing_that_is_denied(caller):
    sandbox = managed(deny=("93.184.215.14:80", "[2606:2800::/32]"))
    reached = ["tcp/443 93.184.215.14", "tcp/80 1.1.1.1", "tcp/80 2606:4700:4700::1111"]
    [words] = caller(
        rootless.probe, [sandbox], [*reached, "tcp/80 93.184.215.14", "tcp/80 2606:2800:21f:cb07::14"]
    )
    assert [target for target, word in words.items() if word == "reached"] == reached


def test_what_comes_too_fast_is_dropped(caller):
    answers = [
        int(caller(support.run, ECHO, sandbox=managed(bandwidth=bandwidth)).text)
        for bandwidth in (None, 10_000)
    ]
    assert answers[0] == 200 > answers[1] > 0


# Its end.


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_pasta_ends_with_its_child(caller, how):
    assert caller(rootless.end_child, managed(), how) == (1, 0)


def test_pasta_ends_with_its_child_when_the_zygote_is_dead(world, user):
    with rootless.caller(world.host.namespace, user) as caller:
        alive, _ = caller(rootless.end_child, managed(), "zygote")
        assert alive == 1
        assert eventually(lambda: not rootless.pastas())


def test_a_closed_client_leaves_no_pasta_and_the_child_lives(world, user):
    with rootless.caller(world.host.namespace, user) as caller:
        caller(rootless.leave_running, managed(), close=True)
        assert not rootless.pastas()
        caller(rootless.end_what_is_left)


def test_a_killed_caller_leaves_nothing(world, user):
    with rootless.caller(world.host.namespace, user) as caller:
        child = caller(rootless.leave_running, managed(), close=False)
        assert rootless.pastas()
        caller.kill()
        assert eventually(lambda: not rootless.pastas())
        assert eventually(lambda: not Path(f"/proc/{child}").exists())


def test_a_spawn_that_fails_later_leaves_no_pasta(world, user):
    with rootless.caller(world.host.namespace, user, prelude=rootless.refuse_keyctl) as caller:
        before = caller(rootless.left_open)
        with pytest.raises(pyspawner.SandboxError, match="session"):
            caller(support.run, "print(1)", sandbox=managed())
        assert eventually(lambda: not rootless.pastas())
        assert caller(rootless.left_open) == before


# What is missing.


@pytest.mark.parametrize(
    ("options", "number", "message"),
    [
        ({"path": "/nowhere"}, errno.ENOENT, "no program pasta.*apt-get install passt"),
        ({"hidden": ["/usr/sbin"]}, errno.ENOENT, "no program nft.*apt-get install nftables"),
        ({"tun_mode": 0o600}, errno.EIO, "pasta refused.*tun.*chmod 666 /dev/net/tun"),
    ],
    ids=["pasta", "nft", "tun"],
)
def test_what_is_missing_is_told_and_nothing_is_left(world, user, options, number, message):
    with rootless.caller(world.host.namespace, user, **options) as caller:
        before = caller(rootless.left_open)
        with pytest.raises(pyspawner.SandboxError, match=message) as caught:
            caller(support.run, "print(1)", sandbox=managed())
        assert caught.value.errno == number
        assert eventually(lambda: not rootless.pastas())
        assert caller(rootless.left_open) == before
        assert caller(support.run, "print(1)").text == "1\n", "without a network it works"
