"""A child's network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyspawner import _native

if TYPE_CHECKING:
    from collections.abc import Iterable

_SUBNET = "198.19.0.0/16"
_SUBNET6 = "fd70:7973:7061:776e::/64"


@dataclass(frozen=True)
class NetworkConfig:
    """A veth pair between the caller's network namespace and the child's; see veth(4).

    Both ends are up, ``lo`` is up, and the child's default route leads through the kernel's end. Each child that runs at the same time
    needs names and addresses of its own: an interface that already has ``kernel_veth_name`` is deleted first. Where packets go from
    there (forwarding, NAT, firewall) is up to the host. :meth:`managed` sees to all that.
    """

    kernel_veth_name: str = "veth-pyspawn"
    """Name of the interface in the caller's network namespace; at most 15 bytes."""

    child_veth_name: str = "veth-pyspawn-c"
    """Name of the interface in the child; at most 15 bytes, and not the other one."""

    kernel_ipv4_address: str = "192.168.123.1"
    """Address of the kernel's end, the child's gateway."""

    child_ipv4_address: str = "192.168.123.2"
    """Address of the child's end, in the same /24."""

    def to_native(self) -> _native.Network:
        """Return what the core takes."""
        return _native.Network.veth(
            self.kernel_veth_name,
            self.child_veth_name,
            str(self.kernel_ipv4_address),
            str(self.child_ipv4_address),
        )

    @staticmethod
    def loopback() -> LoopbackNetwork:
        """Make a network that ends in the child: a ``lo`` that is up, and nothing else."""
        return LoopbackNetwork()

    @staticmethod
    def managed(
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        *,
        ipv6: bool = True,
        dns: Iterable[str] | None = None,
        bandwidth: int | None = None,
        subnet: str = _SUBNET,
        subnet6: str = _SUBNET6,
    ) -> ManagedNetwork:
        """Make a network for many children at once: each has addresses of its own, NAT, and a firewall between it and all others.

        A rule is ``target[:port[,port...]][/tcp|/udp|/icmp]``. The target is an address, a network, a name, or ``*`` for the public
        Internet; of IPv6 in brackets: ``"1.2.3.0/24:443/tcp"``, ``"example.org:80,8000-8080"``, ``"[2001:db8::/32]"``. Without a port: all
        of TCP and UDP, and ICMP echo. A name is looked up by the caller at every spawn, and is what it was then for as long as the child
        lives.

        Where the caller is not root it is made by the program ``pasta`` (``apt-get install passt``), which opens the child's connections as
        the caller's user.

        No child ever reaches the host itself, loopback, link-local addresses (with the cloud's metadata), multicast, or another child.

        :param allow: all that it may reach. When empty, the public Internet: not the host's networks, private (RFC 1918, ULA), shared
            (CGNAT) or reserved addresses. An address or network that is listed may be private; a name that leads to a private address is
            an error.
        :param deny: what it may not reach, whatever is allowed; here ``*`` is everything.
        :param ipv6: whether it has IPv6 too. The host must forward it; without root, a host that has none is no error.
        :param dns: the addresses of its resolvers, reachable on port 53. ``None`` (default): the host's; but with ``allow``, none, and
            ``/etc/hosts`` has the names that it lists. Empty: none.
        :param bandwidth: in bytes per second, for each direction; what comes faster is dropped. ``None`` (default): unlimited.
        :param subnet: where IPv4 addresses are taken from, four for each child, 255 children for each Client. Without root
            all children have the same.
        :param subnet6: the same for IPv6.
        """
        return ManagedNetwork(
            _strings("allow", allow),
            _strings("deny", deny),
            ipv6,
            None if dns is None else _strings("dns", dns),
            bandwidth,
            subnet,
            subnet6,
        )


@dataclass(frozen=True)
class LoopbackNetwork:
    """See :meth:`NetworkConfig.loopback`."""

    def to_native(self) -> _native.Network:
        """Return what the core takes."""
        return _native.Network.loopback()


@dataclass(frozen=True)
class ManagedNetwork:
    """See :meth:`NetworkConfig.managed`."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    ipv6: bool = True
    dns: tuple[str, ...] | None = None
    bandwidth: int | None = None
    subnet: str = _SUBNET
    subnet6: str = _SUBNET6

    def to_native(self) -> _native.Network:
        """Return what the core takes."""
        return _native.Network.managed(
            allow=list(self.allow),
            deny=list(self.deny),
            ipv6=self.ipv6,
            dns=None if self.dns is None else list(self.dns),
            bandwidth=self.bandwidth,
            subnet=str(self.subnet),
            subnet6=str(self.subnet6),
        )


Network = NetworkConfig | LoopbackNetwork | ManagedNetwork


def _strings(name: str, values: Iterable[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise TypeError(f"{name} must be a tuple of strings, not a string: ({values!r},)")
    return tuple(map(str, values))


def to_native(network: Network | None) -> _native.Network | None:
    """Return what the core takes."""
    if network is None:
        return None
    # Of any type at run time, whatever the annotation says.
    if not isinstance(network, Network):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"network must be NetworkConfig(...), NetworkConfig.managed(...), NetworkConfig.loopback() or None, not {network!r}"
        )
    return network.to_native()
