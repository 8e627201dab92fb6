"""A managed network without rules: the public Internet, and nobody else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from managed_support import (
    NAME,
    SERVE,
    Child,
    addresses_in,
    addresses_of,
    caller_of,
    children,
    documented,
    lead_to,
    let_all_through,
    managed,
    reached,
    router,
    unreached,
)

import internet
import netns
import pyspawner
from internet import HOST_PUBLIC, INTERNAL, METADATA, OTHER, PUBLIC, SPECIAL, World, probe_from, targets

PRIVATE_OTHER, PUBLIC_OTHER = (OTHER[0], OTHER[2]), (OTHER[1], OTHER[3])
SERVED = ("tcp/9999", "udp/9999", "icmp")
LOOK_UP = """
import socket
answer = sorted({info[4][0] for info in socket.getaddrinfo("example.org", 80)})
"""


def test_the_public_internet_is_reached_and_sees_the_host(world, caller):
    world.forget()
    with children(caller, managed()) as [child]:
        assert unreached(child.probe(targets(PUBLIC), seconds=30)) == {}
        assert child.fetch("93.184.215.14")["caller"] == HOST_PUBLIC[0]
        assert child.fetch("2606:2800:21f:cb07::14")["caller"] == HOST_PUBLIC[1]
    assert {packet.caller for packet in world.internet.packets()} == set(HOST_PUBLIC)


@pytest.mark.parametrize("dns", [None, ("1.1.1.1",), ("2606:4700:4700::1111",)])
def test_names_are_found(caller, dns):
    with children(caller, managed(dns=dns)) as [child]:
        assert child.run(LOOK_UP) == ["2606:2800:21f:cb07::14", "93.184.215.14"]


def test_without_a_resolver_names_are_not_found(caller):
    with children(caller, managed(dns=())) as [child], pytest.raises(AssertionError, match="gaierror"):
        child.run(LOOK_UP)


# Nobody else.


@contextlib.contextmanager
def everybody(world: World, directory: Path) -> Iterator[tuple[Child, list[Child], dict[str, list[str]]]]:
    """Have a child, and all whom it must not reach, by their names."""
    with contextlib.ExitStack() as stack:
        callers = []
        for name in ("own", "other"):
            (directory / name).mkdir()
            callers.append(stack.enter_context(caller_of(world.host.namespace, directory / name)))
        caller, other_caller = callers
        child, sibling, unmanaged = stack.enter_context(children(caller, managed(), managed(), documented()))
        [cousin] = stack.enter_context(children(caller, managed(), of="other"))
        [stranger] = stack.enter_context(children(other_caller, managed()))
        for each in (sibling, unmanaged, cousin, stranger):
            each.run(SERVE)
        for each in (cousin, stranger):
            lead_to(each)
        between = router(child)
        [near] = [name for name in between.look().interfaces if is_gateway(between, name, child)]
        between.ip(f"address add fe80::1/64 dev {near} nodad")
        child.namespace.ip(f"address add fe80::2/64 dev {NAME} nodad")
        assert stack.enter_context(internet.server("router", between)).recv() == "ready"
        yield (
            child,
            [cousin, stranger],
            {
                "host": targets(addresses_in(world.host.namespace)),
                "router": targets(addresses_in(between)),
                "link-local": targets([f"fe80::1%{NAME}"]),
                "for many": targets(["224.0.0.1", "255.255.255.255", f"ff02::1%{NAME}"], ["udp/9999"]),
                "metadata": targets([METADATA]),
                "special": targets(SPECIAL),
                "internal": [*targets(INTERNAL), "tcp/80 ::ffff:10.0.0.5", "udp/53 ::ffff:10.0.0.5"],
                "other host": targets(PRIVATE_OTHER),
                "sibling": targets(sibling.addresses, SERVED),
                "unmanaged": targets(unmanaged.addresses, SERVED),
                "of another Client": targets(cousin.addresses, SERVED),
                "of another caller": targets(stranger.addresses, SERVED),
            },
        )


def is_gateway(between: netns.Namespace, interface: str, child: Child) -> bool:
    [gateway] = [route["gateway"] for route in child.namespace.look().routes if route["dst"] == "default"]
    return gateway in addresses_of(between, interface)


def by_name(everybody: dict[str, list[str]], found: list[str]) -> dict[str, list[str]]:
    both = {name: [target for target in all_ if target in found] for name, all_ in everybody.items()}
    return {name: some for name, some in both.items() if some}


@pytest.fixture
def scene(world, tmp_path):
    with everybody(world, tmp_path) as scene:
        world.forget()
        yield scene


def all_of(everybody: dict[str, list[str]]) -> list[str]:
    return [target for some in everybody.values() for target in some]


def test_nobody_else_is_reached(world, scene):
    child, _, forbidden = scene
    assert by_name(forbidden, child.reached(all_of(forbidden))) == {}
    assert world.host.calls() == []
    for place in (world.internet, world.internal, world.other, world.host):
        assert place.packets() == set()
    assert child.fetch("93.184.215.14")["place"] == "Internet"


def test_it_is_the_firewall_that_they_are_not_reached(scene):
    child, relatives, forbidden = scene
    for each in (child, *relatives):
        let_all_through(each)
    missing = unreached(child.probe(all_of(forbidden), seconds=30))
    assert by_name(forbidden, list(missing)) == {}


def test_without_the_routers_table_the_hosts_keeps_the_host_and_other_children(scene):
    child, _, forbidden = scene
    commands = "flush chain inet pyspawner from_children; flush chain inet pyspawner through;"
    router(child).run("nft", f"{commands} add rule inet pyspawner through accept")
    kept = [
        target for name in ("host", "of another Client", "of another caller") for target in forbidden[name]
    ]
    own = [target for target in kept if target.split()[1] in addresses_in(router(child))]
    assert child.reached([target for target in kept if target not in own]) == []
    assert child.reached(["tcp/80 10.0.0.5"], seconds=30) == ["tcp/80 10.0.0.5"]


def test_the_loopback_of_the_host_is_out_of_reach(world, caller):
    loopback = [
        "tcp/80 127.0.0.1",
        "udp/53 127.0.0.1",
        "tcp/80 ::1",
        "tcp/80 ::ffff:127.0.0.1",
        "tcp/80 0.0.0.0",
    ]
    assert reached(probe_from(world.host.namespace, loopback)) == loopback
    world.forget()
    with children(caller, managed()) as [child]:
        assert child.reached(loopback) == []
    assert world.host.calls() == []


def test_nobody_hears_what_is_for_many(world, caller):
    with children(caller, documented(), managed(), managed()) as (unmanaged, child, sibling):
        directed = [each.addresses[0].rpartition(".")[0] + ".255" for each in (unmanaged, sibling)]
        everywhere = targets(["224.0.0.1", "255.255.255.255", *directed], ["udp/9999"])
        assert unmanaged.reached(everywhere[:-1], seconds=30) == everywhere[:-1]
        sibling.run(SERVE)
        world.forget()
        assert (
            child.reached([*everywhere, *targets([f"ff02::1%{NAME}", f"ff05::1%{NAME}"], ["udp/9999"])]) == []
        )
        assert world.host.calls() == []
        assert sibling.run("answer = heard") == []


def test_public_addresses_in_the_networks_of_the_host_are_not_the_internet(world, caller):
    with children(caller, documented(), managed()) as (unmanaged, child):
        assert unmanaged.reached(targets(PUBLIC_OTHER[:1]), seconds=30) == targets(PUBLIC_OTHER[:1])
        assert child.reached(targets(PUBLIC_OTHER)) == []


def test_children_without_a_managed_network_do_not_reach_one_with_it(caller):
    with children(caller, managed(), managed(), documented()) as (child, sibling, unmanaged):
        child.run(SERVE)
        assert sibling.reached(targets(child.addresses, SERVED)) == []
        assert unmanaged.reached(targets(child.addresses, SERVED)) == []
        assert child.run("answer = heard") == []


def test_the_host_and_the_internet_do_not_reach_a_child(world, own_caller):
    host = world.host.namespace
    with children(own_caller, managed()) as [child]:
        child.run(SERVE)
        lead_to(child)
        at_child = targets(child.addresses, SERVED)
        assert reached(probe_from(host, at_child)) == []
        assert reached(probe_from(world.other.namespace, at_child)) == []
        let_all_through(child)
        assert unreached(probe_from(host, at_child, seconds=30)) == {}


def test_a_child_is_told_at_once_what_it_may_not(caller):
    with children(caller, managed()) as [child]:
        words = child.probe(["tcp/80 10.0.0.5", "tcp/80 fd00:5::5"], seconds=60)
    assert words == {"tcp/80 10.0.0.5": "unreachable", "tcp/80 fd00:5::5": "permission"}


def test_a_network_is_one_of_the_three(caller):
    with pytest.raises(TypeError, match=r"NetworkConfig\.managed"):
        caller(spawn_with, "managed")


def spawn_with(client: pyspawner.Client, network: object) -> None:
    client.spawn_child(["", {}], sandbox_config=pyspawner.SandboxConfig(network=network))  # type: ignore[arg-type]
