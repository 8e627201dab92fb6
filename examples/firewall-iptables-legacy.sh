#!/bin/sh
# A firewall for children with a NetworkConfig(): they reach the public Internet, under the host's address, and nothing else.
#
#     firewall-iptables-legacy.sh up eth0 veth-pyspawn=192.168.123.2
#     firewall-iptables-legacy.sh down
#
# eth0 leads to the Internet. Then comes, for each child that may run at the same time, its kernel_veth_name with its
# child_ipv4_address. Those interfaces come and go with the children: the rules need not be touched. "up" replaces what an
# earlier "up" has made.
#
# Networks of yours with public addresses are denied if you name them: DENY="81.2.69.0/24 81.2.70.0/24" firewall-iptables-legacy.sh up ...
#
# All is in chains called CHILDREN-..., which come before your own.
set -eu

forwarding=/proc/sys/net/ipv4/ip_forward
# The special-purpose addresses of IPv4: private networks, the provider's NAT, link-local with the cloud's metadata, multicast, ...
not_public="0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"

fail() {
    echo "$0: $1" >&2
    exit 2
}

is_name() {
    case $1 in '' | -* | *[!A-Za-z0-9_.-]*) return 1 ;; esac
    [ ${#1} -le 15 ]
}

is_address() (
    case $1 in *[!0-9.]* | *[0-9][0-9][0-9][0-9]* | .* | *. | *..*) return 1 ;; esac
    IFS=.
    # shellcheck disable=SC2086 (into its numbers)
    set -- $1
    [ $# -eq 4 ] || return 1
    for number; do
        case $number in 0?*) return 1 ;; esac
        [ "$number" -le 255 ] || return 1
    done
)

is_network() {
    case ${1#*/} in '' | *[!0-9]* | ???*) return 1 ;; esac
    is_address "${1%/*}" && [ "${1#*/}" -le 32 ]
}

# Whether forwarding was off before the first "up".
was_off() {
    iptables-legacy -w -S CHILDREN-FORWARD 2>/dev/null | grep -qx -e '-A CHILDREN-FORWARD -j DROP'
}

# lead COMMAND TABLE CHAIN: from there to our chain.
lead() {
    "$1" -w -t "$2" -C "$3" -j "CHILDREN-$3" 2>/dev/null || "$1" -w -t "$2" -I "$3" -j "CHILDREN-$3"
}

# clear COMMAND TABLE CHAIN: what "lead" has made, and our chain.
clear() {
    while "$1" -w -t "$2" -D "$3" -j "CHILDREN-$3" 2>/dev/null; do :; done
    if "$1" -w -t "$2" -F "CHILDREN-$3" 2>/dev/null; then
        "$1" -w -t "$2" -X "CHILDREN-$3"
    fi
}

up() {
    [ $# -ge 2 ] || fail "up needs an uplink, and INTERFACE=ADDRESS of each child"
    uplink=$1
    shift
    is_name "$uplink" && ip link show dev "$uplink" >/dev/null 2>&1 || fail "there is no interface '$uplink'"
    spoofing='' spoofing6='' input='' forward='' masquerade='' denied=''
    for child; do
        interface=${child%%=*} address=${child#*=}
        is_name "$interface" || fail "'$child' does not begin with the name of an interface"
        [ "$interface" != "$uplink" ] || fail "'$interface' cannot be the uplink and lead to a child"
        is_address "$address" || fail "'$child' does not end with =ADDRESS, an IPv4 address"
        spoofing="$spoofing
-A CHILDREN-PREROUTING -i $interface ! -s $address -j DROP"
        spoofing6="$spoofing6
-A CHILDREN-PREROUTING -i $interface -j DROP"
        input="$input
-A CHILDREN-INPUT -i $interface -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A CHILDREN-INPUT -i $interface -j REJECT --reject-with icmp-admin-prohibited"
        forward="$forward
-A CHILDREN-FORWARD -i $interface -g CHILDREN-OUT
-A CHILDREN-FORWARD -o $interface -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A CHILDREN-FORWARD -o $interface -j DROP"
        masquerade="$masquerade
-A CHILDREN-POSTROUTING -s $address -o $uplink -j MASQUERADE"
    done
    for network in $not_public ${DENY:-}; do
        is_network "$network" || fail "DENY: '$network' is no IPv4 network like 81.2.69.0/24"
        denied="$denied
-A CHILDREN-OUT -d $network -j REJECT --reject-with icmp-admin-prohibited"
    done

    # The switch for forwarding is the whole host's. Where it was off, nobody but the children shall find it on.
    others=''
    if [ "$(cat $forwarding)" = 0 ] || was_off; then
        others='-A CHILDREN-FORWARD -j DROP'
    fi

    # A line with a colon empties a chain or makes it; each table changes in one step.
    iptables-legacy-restore --wait --noflush <<RULES
*filter
# The host, whichever of its addresses is called. It may call a child, and gets answers.
:CHILDREN-INPUT - [0:0]
$input
:CHILDREN-FORWARD - [0:0]
:CHILDREN-OUT - [0:0]
$forward
$others
# What is invalid would leave without a new address.
-A CHILDREN-OUT -m conntrack --ctstate INVALID -j DROP
-A CHILDREN-OUT ! -o $uplink -j REJECT --reject-with icmp-admin-prohibited
$denied
-A CHILDREN-OUT -j ACCEPT
COMMIT
*raw
# Under its own address.
:CHILDREN-PREROUTING - [0:0]
$spoofing
COMMIT
*nat
:CHILDREN-POSTROUTING - [0:0]
$masquerade
COMMIT
RULES
    for chain in INPUT FORWARD; do
        lead iptables-legacy filter $chain
    done
    lead iptables-legacy raw PREROUTING
    lead iptables-legacy nat POSTROUTING

    # Not in IPv6, if the host has it.
    if [ -d /proc/sys/net/ipv6 ]; then
        ip6tables-legacy-restore --wait --noflush <<RULES
*raw
:CHILDREN-PREROUTING - [0:0]
$spoofing6
COMMIT
RULES
        lead ip6tables-legacy raw PREROUTING
    fi
    # Last, so that nothing is forwarded without the rules. Only IPv4.
    [ "$(cat $forwarding)" = 1 ] || echo 1 >$forwarding
}

down() {
    if was_off; then
        echo 0 >$forwarding
    fi
    clear iptables-legacy nat POSTROUTING
    clear iptables-legacy raw PREROUTING
    clear iptables-legacy filter INPUT
    clear iptables-legacy filter FORWARD
    clear iptables-legacy filter OUT
    if [ -d /proc/sys/net/ipv6 ]; then
        clear ip6tables-legacy raw PREROUTING
    fi
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
    up) up "$@" ;;
    down) down ;;
    *) fail "up UPLINK INTERFACE=ADDRESS... | down" ;;
esac
