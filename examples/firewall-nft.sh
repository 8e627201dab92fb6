#!/bin/sh
# A firewall for children with a NetworkConfig(): they reach the public Internet, under the host's address, and nothing else.
#
#     firewall-nft.sh up eth0 veth-pyspawn=192.168.123.2
#     firewall-nft.sh down
#
# eth0 leads to the Internet. Then comes, for each child that may run at the same time, its kernel_veth_name with its
# child_ipv4_address. Those interfaces come and go with the children: the rules need not be touched. "up" replaces what an
# earlier "up" has made, in one step.
#
# Networks of yours with public addresses are denied if you name them: DENY="81.2.69.0/24 81.2.70.0/24" firewall-nft.sh up ...
#
# All is in one table. What other tables drop stays dropped, here Docker's FORWARD for example.
set -eu

table=children_firewall
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
    nft list chain inet $table forward 2>/dev/null | grep -q 'policy drop'
}

up() {
    [ $# -ge 2 ] || fail "up needs an uplink, and INTERFACE=ADDRESS of each child"
    uplink=$1
    shift
    is_name "$uplink" && ip link show dev "$uplink" >/dev/null 2>&1 || fail "there is no interface '$uplink'"
    interfaces='' addresses='' children=''
    for child; do
        interface=${child%%=*} address=${child#*=}
        is_name "$interface" || fail "'$child' does not begin with the name of an interface"
        [ "$interface" != "$uplink" ] || fail "'$interface' cannot be the uplink and lead to a child"
        is_address "$address" || fail "'$child' does not end with =ADDRESS, an IPv4 address"
        interfaces="$interfaces \"$interface\","
        addresses="$addresses $address,"
        children="$children \"$interface\" . $address,"
    done
    denied=''
    for network in $not_public ${DENY:-}; do
        is_network "$network" || fail "DENY: '$network' is no IPv4 network like 81.2.69.0/24"
        denied="$denied $network,"
    done

    # The switch for forwarding is the whole host's. Where it was off, nobody but the children shall find it on.
    others=accept
    if [ "$(cat $forwarding)" = 0 ] || was_off; then
        others=drop
    fi

    nft -f - <<RULES
add table inet $table
delete table inet $table
table inet $table {
    set interfaces { type ifname; elements = { $interfaces } }
    set children { type ifname . ipv4_addr; elements = { $children } }
    set denied { type ipv4_addr; flags interval; auto-merge; elements = { $denied } }

    # Under its own address, and not in IPv6.
    chain prerouting {
        type filter hook prerouting priority raw; policy accept;
        iifname @interfaces iifname . ip saddr != @children drop
        iifname @interfaces meta nfproto ipv6 drop
    }

    # The host, whichever of its addresses is called. It may call a child, and gets answers.
    chain input {
        type filter hook input priority filter; policy accept;
        iifname @interfaces ct state established,related accept
        iifname @interfaces reject with icmpx admin-prohibited
    }

    chain forward {
        type filter hook forward priority filter; policy $others;
        iifname @interfaces goto from_child
        oifname @interfaces ct state established,related accept
        oifname @interfaces drop
    }

    chain from_child {
        # Would leave without a new address.
        ct state invalid drop
        oifname != "$uplink" reject with icmpx admin-prohibited
        ip daddr @denied reject with icmpx admin-prohibited
        accept
    }

    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "$uplink" ip saddr { $addresses } masquerade
    }
}
RULES
    # Last, so that nothing is forwarded without the rules. Only IPv4.
    [ "$(cat $forwarding)" = 1 ] || echo 1 >$forwarding
}

down() {
    if was_off; then
        echo 0 >$forwarding
    fi
    nft -f - <<RULES
add table inet $table
delete table inet $table
RULES
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
    up) up "$@" ;;
    down) down ;;
    *) fail "up UPLINK INTERFACE=ADDRESS... | down" ;;
esac
