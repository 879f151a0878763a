"""What differs between two listings of a table, in words."""

from __future__ import annotations

import copy
from typing import Any

from netplane.nft.listing import differences, read

ANSWER: dict[str, Any] = {
    "nftables": [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "ip", "name": "netplane", "handle": 7}},
        {"counter": {"name": "unknown-vteps", "handle": 1, "packets": 5, "bytes": 300}},
        {"set": {"name": "vteps", "handle": 2, "elem": ["10.0.0.2", "10.0.0.3"]}},
        {"chain": {"name": "forward", "handle": 3, "policy": "accept"}},
        {"rule": {"chain": "forward", "handle": 4, "comment": "from", "expr": [{"accept": None}]}},
        {"rule": {"chain": "forward", "handle": 5, "comment": "to", "expr": [{"accept": None}]}},
    ]
}


def changed(**paths: Any) -> list[str]:
    """Return the differences that a change of the answer makes."""
    answer = copy.deepcopy(ANSWER)
    change = paths["by"]
    change(answer["nftables"])
    return differences(read(ANSWER), read(answer))


def test_counting_and_numbering_make_no_difference() -> None:
    def by(entries: list[Any]) -> None:
        entries[1]["table"]["handle"] = 9
        entries[2]["counter"].update(packets=6, bytes=360)
        entries[5]["rule"]["handle"] = 14

    assert changed(by=by) == []


def test_each_difference_is_told() -> None:
    assert changed(by=lambda found: found.pop(5)) == ['rule "from" of chain forward is missing']
    assert changed(by=lambda found: found.append(copy.deepcopy(found[6]))) == [
        'rule "to" of chain forward is left over'
    ]
    stranger = {"rule": {"chain": "forward", "handle": 6, "expr": [{"drop": None}]}}
    assert changed(by=lambda found: found.append(stranger)) == [
        'rule [{"drop": null}] of chain forward is left over'
    ]
    assert changed(by=lambda found: found.insert(5, found.pop(6))) == ["rules are in another order"]
    assert changed(by=lambda found: found[4]["chain"].update(policy="drop")) == [
        "chain forward is another"
    ]
    assert changed(by=lambda found: found[1]["table"].update(flags="dormant")) == [
        "table netplane is another"
    ]
    assert changed(by=lambda found: found[3]["set"].update(elem=["10.0.0.2", "10.0.0.9"])) == [
        "10.0.0.3 is missing from vteps", "10.0.0.9 is left over in vteps",
    ]  # fmt: skip
    assert changed(by=lambda found: found[3]["set"].pop("elem")) == [
        "10.0.0.2 is missing from vteps", "10.0.0.3 is missing from vteps",
    ]  # fmt: skip


def test_a_table_that_was_made_at_once_has_all_numbers_from_one() -> None:
    assert read(ANSWER).is_untouched(5)
    # One that came, last or not; one that is another; one that went.
    assert not read(ANSWER).is_untouched(4)
    answer = copy.deepcopy(ANSWER)
    answer["nftables"][6]["rule"]["handle"] = 6
    assert not read(answer).is_untouched(5)
    del answer["nftables"][6]
    assert not read(answer).is_untouched(5)

