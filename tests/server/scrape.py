"""Reading a member's metrics page as Prometheus does."""

from __future__ import annotations

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.server.raw import get


def families(endpoint: str) -> list[Metric]:
    page = get(endpoint, "/metrics")
    assert page.status == 200
    assert page.kind == "text/plain; version=0.0.4; charset=utf-8"
    return list(text_string_to_metric_families(page.text))


class Samples:
    """One scrape."""

    def __init__(self, endpoint: str) -> None:
        self.all = [sample for family in families(endpoint) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Return the value of the one sample with these labels, 0.0 where there is none."""
        found = [
            sample.value
            for sample in self.all
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) <= 1, f"{name} is not unique"
        return found[0] if found else 0.0


class Growth:
    """What has grown between two scrapes of one member."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._before = Samples(endpoint)
        self._after = self._before

    def look(self) -> Growth:
        """Scrape again."""
        self._after = Samples(self._endpoint)
        return self

    def of(self, name: str, **labels: str) -> float:
        """Return by how much the one sample with these labels has grown."""
        return self._after.value(name, **labels) - self._before.value(name, **labels)
