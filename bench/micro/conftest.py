"""What the microbenchmarks share: how a batch is measured. `make micro`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

ROUNDS = 300


@pytest.fixture
def per_operation(benchmark: Any) -> Iterator[Callable[..., Any]]:
    """Yield `measure(target, operations, setup)`; the table's times are of one batch.

    Microseconds per operation (best and median) are in the extra info and printed.
    """

    def measure(
        target: Callable[..., object], operations: int, setup: Callable[[], tuple[Any, ...]]
    ) -> Any:
        result = benchmark.pedantic(
            target, setup=lambda: (setup(), {}), rounds=ROUNDS, warmup_rounds=20
        )
        if benchmark.stats is not None:  # None with --benchmark-disable
            stats = benchmark.stats.stats
            for name, seconds in (("best", stats.min), ("median", stats.median)):
                benchmark.extra_info[f"us per operation, {name}"] = 1e6 * seconds / operations
            print(
                f"\n{benchmark.name}: {1e6 * stats.min / operations:.2f} us per operation at best, "
                f"{1e6 * stats.median / operations:.2f} median"
            )
        return result

    return measure
