"""What chains of others say, and where our two rules go."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import Any

import pytest

from netplane.nft.chains import (
    DOCKER,
    FORWARD,
    Chain,
    Line,
    Pair,
    forward_chains,
    in_the_way,
    legacy_commands,
    legacy_lines,
    names_network,
    nft_commands,
    nft_lines,
    place,
)

NETWORK = IPv4Network("10.5.0.0/16")
PAIR = Pair("netplane", NETWORK)
FROM = Line("7", "netplane: from 10.5.0.0/16", "from")
TO = Line("8", "netplane: to 10.5.0.0/16", "to")
OTHERS = Line("9", "netplane-two: from 10.9.0.0/16")
JUMP = Line("10", jumps=DOCKER)
DROP = Line("11", drops=True)


def chain(*own: Line, docker: Sequence[Line] | None = None, policy: str = "drop") -> Chain:
    return Chain("ip filter FORWARD", policy, own, docker, is_iptables=True)


@pytest.mark.parametrize(
    ("found", "where", "stale", "write"),
    [
        (chain(), FORWARD, [], True),
        (chain(DROP), FORWARD, [], True),
        (chain(FROM, TO, DROP), FORWARD, [], False),
        (chain(TO, FROM, DROP), FORWARD, [], False),
        # Two agents of one host must not push each other from the first place for ever.
        (chain(OTHERS, FROM, TO), FORWARD, [], False),
        (chain(DROP, FROM, TO), FORWARD, ["7", "8"], True),
        (chain(FROM, DROP, TO), FORWARD, ["7", "8"], True),
        (chain(FROM), FORWARD, ["7"], True),
        (chain(FROM, TO, TO._replace(name="12")), FORWARD, ["7", "8", "12"], True),
        # Of an earlier network, and with our comment but another meaning.
        (chain(FROM._replace(comment="netplane: from 10.4.0.0/16"), TO), FORWARD, ["7", "8"], True),
        (chain(FROM._replace(accepts=""), TO), FORWARD, ["7", "8"], True),
        (chain(JUMP, docker=[]), DOCKER, [], True),
        (chain(JUMP, docker=[FROM, TO, DROP]), DOCKER, [], False),
        (chain(FROM, TO, JUMP, docker=[]), DOCKER, ["7", "8"], True),
        # A chain of that name that nothing leads to.
        (chain(docker=[FROM, TO]), FORWARD, ["7", "8"], True),
    ],
)
def test_the_pair_goes_to_the_front(
    found: Chain, where: str, stale: list[str], *, write: bool
) -> None:
    placing = place(found, PAIR, wanted=True)
    assert (placing.place, [line.name for _, line in placing.stale]) == (where, stale)
    assert placing.write is write


def test_what_is_not_wanted_goes_and_nothing_of_others() -> None:
    placing = place(chain(OTHERS, FROM, DROP, JUMP, docker=[TO]), PAIR, wanted=False)
    assert placing.stale == ((FORWARD, FROM), (DOCKER, TO))
    assert not placing.write
    assert place(chain(OTHERS, DROP), PAIR, wanted=False).is_done


def test_one_transaction_of_nft() -> None:
    placing = place(chain(FROM), PAIR, wanted=True)
    assert nft_commands(placing, PAIR).splitlines() == [
        "delete rule ip filter FORWARD handle 7",
        (
            "insert rule ip filter FORWARD ip saddr & 255.255.0.0 == 10.5.0.0 counter accept"
            ' comment "netplane: from 10.5.0.0/16"'
        ),
        (
            "insert rule ip filter FORWARD ip daddr & 255.255.0.0 == 10.5.0.0 counter accept"
            ' comment "netplane: to 10.5.0.0/16"'
        ),
    ]


def rule(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"rule": {"handle": 4, "expr": list(parts), **more}}


def source(right: object, *, op: str = "==", field: str = "saddr") -> dict[str, Any]:
    left = {"payload": {"protocol": "ip", "field": field}}
    return {"match": {"op": op, "left": left, "right": right}}


PREFIX = {"prefix": {"addr": "10.5.0.0", "len": 16}}
ACCEPT, DROPS = {"accept": None}, {"drop": None}
COUNTER = {"counter": {"packets": 1, "bytes": 60}}
INTERFACE = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}}


@pytest.mark.parametrize(
    ("parts", "accepts", "drops"),
    [
        ([source(PREFIX), COUNTER, ACCEPT], "from", False),
        ([source(PREFIX, field="daddr"), ACCEPT], "to", False),
        ([source({"prefix": {"addr": "10.0.0.0", "len": 8}}), ACCEPT], "from", False),
        ([source({"set": ["192.0.2.1", PREFIX]}), ACCEPT], "from", False),
        ([source({"prefix": {"addr": "10.5.1.0", "len": 24}}), ACCEPT], "", False),
        ([source(PREFIX, op="!="), ACCEPT], "", False),
        ([source("@known"), ACCEPT], "", False),
        ([INTERFACE, source(PREFIX), ACCEPT], "", False),
        ([source(PREFIX), DROPS], "", False),
        ([COUNTER, DROPS], "", True),
        ([{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}], "", True),
        ([{"xt": None}, DROPS], "", False),
        ([], "", False),
    ],
)
def test_rules_of_nft_are_read(parts: list[dict[str, Any]], accepts: str, *, drops: bool) -> None:
    [line] = nft_lines({"nftables": [{"metainfo": {}}, rule(*parts)]}, NETWORK)
    assert (line.accepts, line.drops) == (accepts, drops)


def test_a_jump_and_a_comment_of_nft_are_read() -> None:
    listed = {"nftables": [rule(COUNTER, {"jump": {"target": DOCKER}}, comment="first")]}
    assert nft_lines(listed, NETWORK) == [Line("4", "first", jumps=DOCKER)]


PRINTED = """\
-P FORWARD DROP
-A FORWARD -s 10.5.0.0/16 -m comment --comment "netplane: from 10.5.0.0/16" -j ACCEPT
-A FORWARD -d 10.5.0.0/16 -m comment --comment "netplane: to 10.5.0.0/16" -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -d 10.5.0.0/16 -i eth0 -j ACCEPT
-A FORWARD -s 10.0.0.0/8 -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
"""


def test_what_iptables_print_is_read() -> None:
    policy, lines = legacy_lines(PRINTED, NETWORK)
    assert policy == "drop"
    assert [(line.accepts, line.jumps, line.drops) for line in lines] == [
        ("from", "ACCEPT", False),
        ("to", "ACCEPT", False),
        ("", "DOCKER-USER", False),
        ("", "ACCEPT", False),
        ("", "ACCEPT", False),
        ("", "REJECT", True),
    ]
    assert lines[0].comment == "netplane: from 10.5.0.0/16"


def test_one_transaction_of_iptables_deletes_by_their_own_words() -> None:
    _, lines = legacy_lines(PRINTED, NETWORK)
    placing = place(chain(*lines, docker=[]), PAIR, wanted=True)
    assert legacy_commands(placing, PAIR) == (
        "*filter\n"
        '-D FORWARD -s 10.5.0.0/16 -m comment --comment "netplane: from 10.5.0.0/16" -j ACCEPT\n'
        '-D FORWARD -d 10.5.0.0/16 -m comment --comment "netplane: to 10.5.0.0/16" -j ACCEPT\n'
        "-I DOCKER-USER 1 -s 10.5.0.0/16 -m comment --comment"
        ' "netplane: from 10.5.0.0/16" -j ACCEPT\n'
        "-I DOCKER-USER 1 -d 10.5.0.0/16 -m comment --comment"
        ' "netplane: to 10.5.0.0/16" -j ACCEPT\n'
        "COMMIT\n"
    )


def test_who_drops_is_named_with_what_helps() -> None:
    custom = Chain("inet mine through", "drop", ())
    zones = Chain("inet firewalld filter_FORWARD", "accept", (DROP,))
    found = [chain(), custom, zones, Chain("ip quiet fwd", "accept", ())]
    begins = "drops what no rule of it accepts: "
    assert in_the_way(found, PAIR, kept=False) == [
        (
            f"chain ip filter FORWARD {begins}let packets from and to 10.5.0.0/16 pass, or start"
            " the agent with --iptables-forward-rules"
        ),
        (
            f"chain inet mine through {begins}nft insert rule inet mine through"
            " ip saddr 10.5.0.0/16 accept, and so for daddr"
        ),
        (
            f"chain inet firewalld filter_FORWARD {begins}firewall-cmd --permanent --zone=trusted"
            " --add-source=10.5.0.0/16, and --reload"
        ),
    ]
    left = [text.split()[2] for text in in_the_way(found, PAIR, kept=True)]
    assert left == ["mine", "firewalld"]
    # Whoever has done as told is not told again.
    done = Chain("inet mine through", "drop", (Line("1", accepts="from"), Line("2", accepts="to")))
    assert in_the_way([done], PAIR, kept=False) == []


def test_only_chains_that_see_forwarded_packets_of_ours_count() -> None:
    def entry(family: str, table: str, name: str, **more: str) -> dict[str, Any]:
        return {"chain": {"family": family, "table": table, "name": name, **more}}

    listed = {
        "nftables": [
            entry("ip", "filter", "FORWARD", hook="forward", policy="drop"),
            entry("ip", "filter", "DOCKER-USER"),
            entry("ip", "filter", "INPUT", hook="input", policy="drop"),
            entry("ip6", "filter", "FORWARD", hook="forward", policy="drop"),
            entry("bridge", "filter", "FORWARD", hook="forward", policy="drop"),
            entry("inet", "mine", "fwd", hook="forward"),
            entry("ip", "netplane", "forward", hook="forward", policy="accept"),
            entry("ip", "netplane-two", "forward", hook="forward", policy="accept"),
        ]
    }
    assert forward_chains(listed) == [
        ("ip", "filter", "FORWARD", "drop"),
        ("inet", "mine", "fwd", "accept"),
    ]


def test_a_table_that_knows_the_network_is_seen() -> None:
    listed = {"nftables": [rule(source(PREFIX), {"goto": {"target": "filter_FWD_trusted"}})]}
    assert names_network(listed, NETWORK)
    assert not names_network(listed, IPv4Network("10.0.0.0/8"))
