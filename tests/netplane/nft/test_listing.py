"""What nft says of a table, taken apart, and what differs between two, in words."""

from __future__ import annotations

from netplane.nft.listing import differences, read

SAID = """\
table ip netplane { # handle 7
    comment "netplane: kept"
    counter unknown-vteps { # handle 3
        comment "dropped"
    }

    set vteps { # handle 4
        type ipv4_addr
        comment "hosts"
        elements = { 10.0.0.2, 10.0.0.3,
                 10.0.0.4 }
    }

    map ports { # handle 5
        type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
        flags interval
        elements = { 6 . 0.0.0.0/0 . 80 : 10.5.1.2 . 8080 }
    }

    chain forward { # handle 1
        comment "no drop here"
        type filter hook forward priority filter - 10; policy accept;
        ip saddr 10.5.0.0/16 accept comment "from # handle 9" # handle 6
        ip daddr 10.5.0.0/16 accept comment "to" # handle 2
    }
}
"""


def changed(old: str, new: str) -> list[str]:
    """Return the differences that a change makes."""
    assert old in SAID
    return differences(read(SAID), read(SAID.replace(old, new)))


def test_a_table_is_taken_apart() -> None:
    found = read(SAID)
    assert found.lines[:3] == (
        "table ip netplane", 'comment "netplane: kept"', "counter unknown-vteps",
    )  # fmt: skip
    assert found.lines[-1] == 'chain forward: ip daddr 10.5.0.0/16 accept comment "to"'
    assert found.lines[-2].endswith('comment "from # handle 9"')
    assert found.members == {
        "vteps": {"10.0.0.2", "10.0.0.3", "10.0.0.4"},
        "ports": {"6 . 0.0.0.0/0 . 80 : 10.5.1.2 . 8080"},
    }
    assert found.handles == (3, 4, 5, 1, 6, 2)


def test_numbering_makes_no_difference() -> None:
    assert changed("handle 7", "handle 8") == []


def test_each_difference_is_told() -> None:
    rule = '        ip daddr 10.5.0.0/16 accept comment "to" # handle 2\n'
    words = 'chain forward: ip daddr 10.5.0.0/16 accept comment "to"'
    assert changed(rule, "") == [f"{words} is missing"]
    assert changed(rule, rule + rule) == [f"{words} is left over"]
    assert changed(rule, rule + "        drop # handle 8\n") == ["chain forward: drop is left over"]
    first = '        ip saddr 10.5.0.0/16 accept comment "from # handle 9" # handle 6\n'
    assert changed(first + rule, rule + first) == ["the rules are in another order"]
    hook = "chain forward: type filter hook forward priority filter - 10; policy"
    assert changed("policy accept;", "policy drop;") == [
        f"{hook} accept; is missing", f"{hook} drop; is left over",
    ]  # fmt: skip
    assert changed(
        '    comment "netplane: kept"', '    flags dormant\n    comment "netplane: kept"'
    ) == ["flags dormant is left over"]
    assert changed("10.0.0.3,", "10.0.0.9,") == [
        "vteps: 10.0.0.3 is missing", "vteps: 10.0.0.9 is left over",
    ]  # fmt: skip
    assert changed("elements = { 6 . 0.0.0.0/0 . 80 : 10.5.1.2 . 8080 }", "") == [
        "ports: 6 . 0.0.0.0/0 . 80 : 10.5.1.2 . 8080 is missing"
    ]


def test_whoever_came_or_went_since_it_was_made_shows_in_the_numbers() -> None:
    assert read(SAID).is_untouched(6)
    assert not read(SAID).is_untouched(5)  # the last of six is not ours
    assert not read(SAID.replace("handle 2\n", "handle 7\n")).is_untouched(6)
    assert not read(SAID.replace(" # handle 2\n", "\n")).is_untouched(6)
    # A set in a rule has a number and is not seen by itself.
    assert read(SAID.replace("handle 2\n", "handle 7\n")).is_untouched(6, 1)
    assert not read(SAID).is_untouched(6, 1)


def test_what_is_cut_short_or_strange_is_no_crash() -> None:
    for end in range(len(SAID)):
        read(SAID[:end])
    read("}\n}\nelements = { 1\n")
