"""What chains of others say, and where our two rules go."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import Any

import pytest

from netplane.nft.chains import (
    DOCKER,
    FORWARD,
    Pair,
    forward_chains,
    in_the_way,
    legacy_commands,
    legacy_lines,
    legacy_policy,
    names_network,
    nft_commands,
    nft_lines,
    place,
)
from netplane.nft.fate import BOTH, NONE, Chain, Does, Line

NETWORK = IPv4Network("10.5.0.0/16")
PAIR = Pair("netplane", NETWORK, ("npb-default", "np.1"))
FROM = Line("7", "netplane: from 10.5.0.0/16", Does.ACCEPT, frozenset({"from"}))
TO = Line("8", "netplane: to 10.5.0.0/16", Does.ACCEPT, frozenset({"to"}))
OTHERS = Line("9", "netplane-two: from 10.9.0.0/16", Does.ACCEPT)
JUMP = Line("10", does=Does.JUMP, takes=BOTH, target=DOCKER)
DROP = Line("11", does=Does.DROP, takes=BOTH)


def chain(*own: Line, docker: Sequence[Line] | None = None, policy: str = "drop") -> Chain:
    others = {} if docker is None else {DOCKER: docker}
    return Chain("ip filter FORWARD", policy, own, others, is_iptables=True)


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
        (chain(FROM._replace(does=Does.RETURN), TO), FORWARD, ["7", "8"], True),
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
REJECTS = {"xt": {"type": "target", "name": "REJECT"}}
"""All that nft shows of `-j REJECT`."""


def device(name: object, *, key: str = "iifname") -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": name}}


def jump(target: str, verdict: str = "jump") -> dict[str, Any]:
    return {verdict: {"target": target}}


INTERFACE = device("eth0")
STATES = {"xt": {"type": "match", "name": "conntrack"}}
OWN, FOREIGN = ({"prefix": {"addr": addr, "len": 24}} for addr in ("10.5.1.0", "10.6.1.0"))


@pytest.mark.parametrize(
    ("parts", "accepts"),
    [
        ([source(PREFIX), COUNTER, ACCEPT], "from"),
        ([source(PREFIX, field="daddr"), ACCEPT], "to"),
        ([source({"prefix": {"addr": "10.0.0.0", "len": 8}}), ACCEPT], "from"),
        ([source({"set": ["192.0.2.1", PREFIX]}), {"log": None}, ACCEPT], "from"),
        ([source(OWN), ACCEPT], ""),
        ([source(PREFIX, op="!="), ACCEPT], ""),
        ([source("@known"), ACCEPT], ""),
        ([INTERFACE, source(PREFIX), ACCEPT], ""),
        ([source(PREFIX), DROPS], ""),
        ([ACCEPT], ""),
        ([], ""),
    ],
)
def test_what_may_be_ours_is_read_of_nft(parts: list[dict[str, Any]], accepts: str) -> None:
    [line] = nft_lines({"nftables": [{"metainfo": {}}, rule(*parts)]}, PAIR)
    assert line.accepts == accepts


NO, ALL, SOME, UNSURE = "nothing", "all", "some", "unsure"


def becomes(
    own: Sequence[Any], others: dict[str, Any] | None = None, policy: str = "accept"
) -> str:
    """Say what is told of a chain with these rules, as nft prints them, and of those beside it."""

    def read(rules: Sequence[Any]) -> list[Line]:
        return nft_lines({"nftables": [rule(*parts) for parts in rules]}, PAIR)

    beside = {name: read(rules) for name, rules in (others or {}).items()}
    fate = Chain("ip filter FORWARD", policy, read(own), beside).fate()
    assert fate.unread == []
    if fate.drops or fate.drops_some:
        return ALL if fate.drops else SOME
    return UNSURE if fate.is_unsure else NO


def states(*verdicts: str) -> dict[str, Any]:
    found = [[state, {verdict: None}] for state, verdict in zip("abc", verdicts, strict=False)]
    return {"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": found}}}


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ([[COUNTER, DROPS]], ALL),
        ([[COUNTER, REJECTS]], ALL),
        ([[{"xt": {"type": "match", "name": "comment"}}, COUNTER, DROPS]], ALL),
        ([[{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]], ALL),
        ([[{"log": {"prefix": "x"}}, DROPS]], ALL),
        # What is plainly of our network, or comes over our devices.
        ([[source(PREFIX, field="daddr"), COUNTER, DROPS]], SOME),
        ([[source(OWN), COUNTER, DROPS]], SOME),
        ([[source("10.5.1.7"), COUNTER, DROPS]], SOME),
        ([[source(PREFIX), source(PREFIX, field="daddr"), DROPS]], SOME),
        ([[device("npb-default"), COUNTER, REJECTS]], SOME),
        ([[device("npb*"), COUNTER, DROPS]], SOME),
        ([[device({"set": ["eth0", "np.1"]}, key="oifname"), DROPS]], SOME),
        # What may be: containers may be behind any other bridge, too.
        ([[INTERFACE, DROPS]], UNSURE),
        ([[device("npb-default"), device("eth0", key="oifname"), DROPS]], UNSURE),
        ([[device("npb-default"), device("npb-default", key="oifname"), DROPS]], UNSURE),
        ([[device("npb-blue"), DROPS]], UNSURE),
        ([[source(OWN), source(OWN, field="daddr"), DROPS]], UNSURE),
        ([[source(PREFIX, op="!="), DROPS]], UNSURE),
        ([[source("@known"), DROPS]], UNSURE),
        ([[source(FOREIGN), DROPS]], UNSURE),
        ([[STATES, COUNTER, REJECTS]], UNSURE),
        ([[{"limit": {"rate": 5, "per": "minute"}}, DROPS]], UNSURE),
        ([[{"xt": None}, DROPS]], UNSURE),
        ([[{"xt": None}]], UNSURE),
        ([[COUNTER, {"xt": {"type": "target", "name": "NFQUEUE"}}]], UNSURE),
        ([[{"queue": None}]], UNSURE),
        ([["jump {\n\t\t\tcounter drop\n\t\t}"]], UNSURE),
        ([[states("accept", "drop")]], UNSURE),
        # What lets packets go on.
        ([[]], NO),
        ([[COUNTER]], NO),
        ([[STATES, COUNTER]], NO),
        ([[STATES, COUNTER, ACCEPT]], NO),
        ([[COUNTER, {"xt": {"type": "target", "name": "LOG"}}]], NO),
        ([[source(PREFIX), {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 5}}]], NO),
        ([[states("accept", "accept")]], NO),
        # In their order.
        ([[ACCEPT], [DROPS], [STATES, DROPS]], NO),
        ([[{"return": None}], [DROPS]], NO),
        ([[source(PREFIX), ACCEPT], [source(PREFIX, field="daddr"), ACCEPT], [DROPS]], NO),
        ([[source(PREFIX), ACCEPT], [DROPS], [source(PREFIX, field="daddr"), ACCEPT]], SOME),
        ([[source(PREFIX), ACCEPT], [source(OWN), DROPS]], NO),
        ([[source(PREFIX), ACCEPT], [device("npb-default"), DROPS]], UNSURE),
        ([[STATES, ACCEPT], [STATES, DROPS], [DROPS]], ALL),
        ([[states("accept", "drop")], [DROPS]], ALL),
        ([["jump { ct state established accept }"], [DROPS]], ALL),
        # These may lead all of ours past the drop.
        ([[INTERFACE, {"return": None}], [DROPS]], UNSURE),
        ([[states("accept", "return")], [DROPS]], UNSURE),
        ([[{"xt": None}], [DROPS]], UNSURE),
    ],
)  # fmt: skip
def test_what_a_chain_drops_of_ours_is_told_or_that_it_is_not_known(
    own: list[Any], told: str
) -> None:
    assert becomes(own) == told


@pytest.mark.parametrize("verdict", ["jump", "goto"])
@pytest.mark.parametrize(
    ("block", "told"),
    [
        ([[COUNTER, DROPS]], ALL),
        ([[COUNTER, REJECTS]], ALL),
        ([[jump("DEEPER")]], ALL),
        ([[source(PREFIX), DROPS]], SOME),
        ([[STATES, DROPS]], UNSURE),
        ([[STATES, {"return": None}], [DROPS]], UNSURE),
        ([[ACCEPT], [DROPS]], NO),
        ([[COUNTER, {"return": None}], [DROPS]], NO),
        ([], NO),
    ],
)
def test_jumps_are_followed(verdict: str, block: list[Any], told: str) -> None:
    others = {"BLOCK": block, "DEEPER": [[DROPS]]}
    assert becomes([[COUNTER, jump("BLOCK", verdict)]], others) == told
    # Whom a jump is for is not asked of what it leads to.
    assert becomes([[STATES, jump("BLOCK", verdict)]], others) == UNSURE


def test_what_comes_back_from_a_chain_is_what_its_rules_have_left() -> None:
    through = [[source(PREFIX), ACCEPT], [source(PREFIX, field="daddr"), ACCEPT]]
    assert becomes([[jump("IN")], [DROPS]], {"IN": through}) == NO
    assert becomes([[jump("IN")], [DROPS]], {"IN": [[{"return": None}], *through]}) == ALL
    # What goes to a chain never comes to the rules behind, but to the policy.
    assert becomes([[jump("IN", "goto")], [DROPS]], {"IN": []}) == NO
    assert becomes([[jump("IN", "goto")]], {"IN": []}, policy="drop") == ALL
    assert becomes([[source(PREFIX), jump("IN")]], {"IN": [[DROPS]]}) == SOME
    assert becomes([[STATES, {"return": None}], [jump("IN")]], {"IN": [[DROPS]]}) == UNSURE
    # What may have been led past one drop is not led past the next.
    past = {"IN": [[STATES, {"return": None}], [DROPS]]}
    assert becomes([[jump("IN")], [DROPS]], past) == ALL
    assert becomes([[jump("IN")]], past, policy="drop") == ALL


def test_chains_that_go_in_a_circle_end() -> None:
    # The kernel refuses them, but chains are read one after the other.
    assert becomes([[jump("A")]], {"A": [[jump("B")]], "B": [[jump("A")]]}) == UNSURE


def test_only_chains_that_packets_of_ours_come_to_are_asked_for() -> None:
    to = [Line("1", does=Does.JUMP, takes=BOTH, target="NEXT")]
    assert chain(*to, policy="accept").fate().unread == ["NEXT"]
    assert chain(FROM, TO, *to).fate().unread == []
    assert chain(to[0]._replace(takes=NONE)).fate().unread == []


def test_a_jump_and_a_comment_of_nft_are_read() -> None:
    listed = {"nftables": [rule(COUNTER, {"jump": {"target": DOCKER}}, comment="first")]}
    assert nft_lines(listed, PAIR) == [Line("4", "first", Does.JUMP, BOTH, target=DOCKER)]


PRINTED = """\
-P INPUT ACCEPT
-P FORWARD DROP
-P OUTPUT ACCEPT
-N DOCKER-USER
-A INPUT -j DROP
-A FORWARD -s 10.5.0.0/16 -m comment --comment "netplane: from 10.5.0.0/16" -j ACCEPT
-A FORWARD -d 10.5.0.0/16 -m comment --comment "netplane: to 10.5.0.0/16" -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -g DOCKER-USER
-A FORWARD -d 10.5.0.0/16 -i eth0 -j ACCEPT
-A FORWARD -s 10.0.0.0/8 -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD ! -s 10.5.0.0/16 -j DROP
-A FORWARD -s 10.5.1.0/24 -j DROP
-A FORWARD -i npb+ -j DROP
-A FORWARD -p tcp -m tcp --dport 80 -m comment --comment "a -j b" -j RETURN
-A FORWARD -j NFQUEUE --queue-num 1
-A FORWARD -j LOG
-A FORWARD -s 10.5.0.0/16
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
-A DOCKER-USER -j RETURN
"""


def test_what_iptables_print_is_read() -> None:
    assert legacy_policy(PRINTED) == "drop"
    lines = legacy_lines(PRINTED, FORWARD, PAIR)
    assert [(line.does, "".join(sorted(line.takes)), line.target) for line in lines] == [
        (Does.ACCEPT, "from", ""),
        (Does.ACCEPT, "to", ""),
        (Does.JUMP, "fromto", DOCKER),
        (Does.GOTO, "fromto", DOCKER),
        (Does.ACCEPT, "", ""),
        (Does.ACCEPT, "", ""),
        (Does.DROP, "", ""),
        (Does.DROP, "", ""),
        (Does.DROP, "", ""),
        (Does.RETURN, "", ""),
        (Does.UNKNOWN, "fromto", ""),
        (Does.NOTHING, "fromto", ""),
        (Does.NOTHING, "from", ""),
        (Does.DROP, "fromto", ""),
    ]
    assert [line.some for line in lines[6:9]] == [NONE, {"from"}, BOTH]
    assert lines[0].comment == "netplane: from 10.5.0.0/16"
    assert legacy_lines(PRINTED, DOCKER, PAIR) == [
        Line("DOCKER-USER -j RETURN", does=Does.RETURN, takes=BOTH)
    ]


def test_one_transaction_of_iptables_deletes_by_their_own_words() -> None:
    lines = legacy_lines(PRINTED, FORWARD, PAIR)
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
    command = "iptables-legacy -t mangle"
    mangle = Chain(f"FORWARD of {command}", "drop", (), command=command)
    found = [chain(), custom, zones, mangle, Chain("ip quiet fwd", "accept", ())]
    begins = "drops what no rule of it accepts: "
    named = [
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
        (
            f"chain FORWARD of iptables-legacy -t mangle {begins}"
            "iptables-legacy -t mangle -I FORWARD -s 10.5.0.0/16 -j ACCEPT, and so for -d"
        ),
    ]
    assert in_the_way(found, PAIR, wanted=False) == (named, [])
    assert in_the_way([chain(FROM, TO), *found[1:]], PAIR, wanted=True) == (named[1:], [])
    # Whoever has done as told is not told again.
    done = Chain("inet mine through", "drop", (FROM, TO))
    assert in_the_way([done], PAIR, wanted=False) == ([], [])


def test_who_drops_some_or_may_or_does_where_a_jump_leads_is_named() -> None:
    some = DROP._replace(takes=frozenset({"to"}))
    found = [chain(JUMP, docker=[DROP], policy="accept"), chain(some, policy="accept")]
    helps = "let packets from and to 10.5.0.0/16 pass"
    assert in_the_way(found, PAIR, wanted=True) == (
        [
            (f"chain ip filter FORWARD drops what no rule of it accepts, in DOCKER-USER: {helps}"),
            (
                "chain ip filter FORWARD drops packets of 10.5.0.0/16 that no rule of it accepts:"
                f" {helps}"
            ),
        ],
        [],
    )
    may = chain(DROP._replace(takes=NONE), policy="accept")
    assert in_the_way([may], PAIR, wanted=True) == (
        [],
        ["whether rules of chain ip filter FORWARD drop packets of 10.5.0.0/16"],
    )


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
    assert names_network(listed, PAIR)
    assert not names_network(listed, Pair("netplane", IPv4Network("10.0.0.0/8")))
