"""The watch hub against the model, and proof that the model would notice if it were wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from kvstore.mvcc import watch, watch_encode
from kvstore.mvcc.store import Store
from kvstore.mvcc.watch import WatchHub
from kvstore.mvcc.watch_progress import Progress
from tests.mvcc.watch_model import WatchMachine, walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.mvcc.events import Event

    Patch = Callable[[pytest.MonkeyPatch], None]

CALM = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


WALKS = 60
STEPS = 150


def hypothesis_run(examples: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        WatchMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=CALM,
        ),
    )


def test_every_watcher_gets_exactly_what_it_must() -> None:
    hypothesis_run(60)


@pytest.mark.parametrize("seed", range(WALKS))
def test_long_walks(seed: int) -> None:
    walk(seed, STEPS)


@pytest.mark.slow
def test_every_watcher_gets_exactly_what_it_must_for_longer() -> None:
    hypothesis_run(300)
    for seed in range(1000, 1700):
        walk(seed, 200)


def wrap(owner: Any, name: str, change: Callable[..., Any]) -> Patch:
    """Replace `owner.name` by `change(original, *args)`."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **named: change(original, *args, **named))

    return plant


def _behind_by(step: int) -> Patch:
    def change(real: Any, hub: Any, watcher: Any, next_revision: int) -> None:
        real(hub, watcher, max(1, next_revision + step))

    return wrap(WatchHub, "_fall_behind", change)


def _filter_ignored(real: Any, events: Any, options: int, *rest: Any) -> Any:
    return real(events, options & ~watch_encode.NODELETE, *rest)


def _boundary_lost(real: Any, store: Store, event: Event) -> Any:
    return None if event.revision - 1 <= store.compacted else real(store, event)


def _one_event_a_piece(real: Any, events: Any, options: int, *rest: Any) -> Any:
    return [piece for event in events for piece in real([event], options, *rest)]


def _unfinished_fragments(real: Any, parts: Any, options: int, limit: int) -> Any:
    rests = real(parts, options, limit)
    return rests[:1] if len(rests) > 1 else rests


def _first_forgotten(real: Any, hub: Any, stream: Any, first: int | None = None) -> None:
    real(hub, stream)


def _full_ignored(real: Any, hub: Any, stream: Any, first: int | None = None) -> None:
    return


def _not_emptied(real: Any, hub: Any, stream: Any) -> None:
    stream.full = False


def _history_skipped(real: Any, hub: Any, watcher: Any, head: bytes, pieces: Any, last: int) -> Any:
    return real(hub, watcher, head, pieces[:1], last)


def _slice_overstated(real: Any, hub: Any, first: int, last: int, groups: Any) -> Any:
    return last, real(hub, first, last, groups)[1]


def _start_ignored(real: Any, hub: Any, stream: Any, request: Any, *rest: Any) -> Any:
    copy = type(request)()
    copy.CopyFrom(request)
    if copy.start_revision > hub.revision:
        copy.start_revision = 0
    return real(hub, stream, copy, *rest)


def _early_progress(real: Any, progress: Any, stream: Any) -> bool:
    stream.post(progress._hub.head(progress._hub.revision) + watch_encode.tag(-1))
    return True


def _progress_forgotten(real: Any, progress: Any) -> None:
    return


def _canceled_at_the_boundary(real: Any, hub: Any, revision: int) -> None:
    for watcher in [watcher for watcher in hub._behind if watcher.next <= revision]:
        hub.cancel_compacted(watcher, revision)


def _cancel_leaves_it_synced(real: Any, hub: Any, watcher: Any) -> None:
    group = watcher.group
    was_synced = watcher.synced
    group.size += 1
    real(hub, watcher)
    if was_synced:
        watcher.synced = True
        group.synced[watcher] = None


def _ahead_never_admitted(real: Any, hub: Any) -> None:
    return


def _last_key_excluded(real: Any, matcher: Any, key: bytes) -> Any:
    return [group for group in real(matcher, key) if group.start != key or group.end == b""]


def _wrong_previous(real: Any, watch_event: Any, previous: Any) -> Any:
    return real(watch_event, lambda event: previous(event._replace(revision=event.revision - 1)))


@dataclass(frozen=True)
class Planted:
    name: str
    plant: Patch


PLANTED = [
    Planted("falling behind skips a revision", _behind_by(1)),
    Planted("falling behind repeats a revision", _behind_by(-1)),
    Planted("a filter is ignored", wrap(watch, "pack", _filter_ignored)),
    Planted("prev_kv is lost at the boundary", wrap(Store, "prev_kv", _boundary_lost)),
    Planted(
        "prev_kv is from one revision earlier",
        wrap(watch_encode.WatchEvent, "encoded_with", _wrong_previous),
    ),
    Planted("a revision is split", wrap(watch, "pack", _one_event_a_piece)),
    Planted("fragments are missing", wrap(watch_encode, "_rests", _unfinished_fragments)),
    Planted("a stream fills up amid a round", wrap(WatchHub, "filled", _first_forgotten)),
    Planted("a full stream is sent more", wrap(WatchHub, "filled", _full_ignored)),
    Planted("a drained stream is forgotten", wrap(WatchHub, "emptied", _not_emptied)),
    Planted("history is cut short", wrap(WatchHub, "_deliver_history", _history_skipped)),
    Planted("a slice says it read more", wrap(WatchHub, "_read", _slice_overstated)),
    Planted("a future start counts from now", wrap(WatchHub, "add", _start_ignored)),
    Planted("a future start never comes", wrap(WatchHub, "_admit_ahead", _ahead_never_admitted)),
    Planted("progress is told too early", wrap(Progress, "_tell_all", _early_progress)),
    Planted("asked progress is forgotten", wrap(Progress, "answer", _progress_forgotten)),
    Planted("canceled at the boundary", wrap(WatchHub, "compacted", _canceled_at_the_boundary)),
    Planted("a canceled watcher lives on", wrap(WatchHub, "remove", _cancel_leaves_it_synced)),
    Planted("a range lacks its first key", wrap(watch.Matcher, "match", _last_key_excluded)),
]


@pytest.mark.pure_python
@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_the_model_still_finds(bug: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    # If this fails the hub is fine, the model has gone blind.
    bug.plant(monkeypatch)

    for seed in range(WALKS):
        try:
            walk(seed, STEPS)
        except (AssertionError, KeyError, IndexError):
            return
    pytest.fail(f"{bug.name} survived {WALKS} walks of {STEPS} steps")
