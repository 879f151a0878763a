"""The page: all that was found, missed, left out or broken is on it, and it fetches nothing."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import page
from bench.clusters import ETCD, KVSTORE
from bench.record import FILE, RUNNING, WAITING, Part, RecordError, Run
from bench.tables import markdown
from tests.bench.runs import growing, rival, row, run_of, scenario

EVENTS = {"100 x 10 events/s": 500, "100 x 10 delivery p50 ms": 4.0, "receiver busy": "8 %"}
MILLION = {"put/s at 10000": 900, "put/s at 1000000": 800, "put ratio": 0.89}


def whole() -> Run:
    """Return a run with parts of every kind."""
    return run_of(
        row("P1-uniform", {KVSTORE: [300.0, 330.0], ETCD: [100.0, 90.0]}),
        row("P3-serializable", {KVSTORE: [200.0], ETCD: [100.0]}),
        scenario("P5", {KVSTORE: [EVENTS], ETCD: [EVENTS]}),
        scenario("P6", {KVSTORE: [MILLION], ETCD: [MILLION]}),
        scenario("P8", {KVSTORE: [{"p50": 1.0, "max": 2.0, "gaps": [1.0, 2.0]}]}),
        rival({KVSTORE: 1000.0, ETCD: 500.0, "pysyncobj": 100.0}),
        growing(),
    )


def body(text: str) -> ET.Element:
    """Return the page as a browser reads it."""
    return ET.fromstring(text[text.index("<body>") : text.index("</html>")])


def words(element: ET.Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def rows_with(run: Run, what: str) -> list[ET.Element]:
    return [each for each in body(page.page_of(run)).iter("tr") if what in words(each)]


def test_a_missed_target_is_shown_as_missed() -> None:
    [missed] = rows_with(whole(), "serializable range: rate")
    [reached] = rows_with(whole(), "put, 10 k keys, 10 x 50: rate")

    assert words(missed) == "P3 serializable range: rate ≥ 3x 2x 200 /s 100 /s MISSED"
    assert [cell.get("class") for cell in missed][-1] == "verdict bad"
    assert "goal reached" in words(reached)
    assert [cell.get("class") for cell in reached][-1] == "verdict good"


def test_each_kind_of_plot_is_drawn_and_labelled() -> None:
    plots = [each.get("aria-label") or "" for each in body(page.page_of(whole())).iter("svg")]

    for name in (
        *("P1: puts", "P3: ranges", "Beside other systems", "P5: events", "P6: puts"),
        *("P1-uniform: work of P1-uniform: milliseconds", "P5: delivery", "cost by keys"),
        "seconds until writes resume",
    ):
        assert any(name in plot for plot in plots), name


def test_bars_end_at_their_figures_and_the_spread_is_drawn() -> None:
    [plot] = [
        each
        for each in body(page.page_of(whole())).iter("svg")
        if "P1: puts" in (each.get("aria-label") or "")
    ]
    ours, theirs = (float(each.get("width", "0")) for each in plot.iter("rect"))

    assert ours / theirs == pytest.approx(315 / 95, rel=0.01)
    assert len([each for each in plot.iter("path") if each.get("class") == "spread"]) == 2


def test_a_missing_rival_is_named_with_what_installs_it() -> None:
    why = "ZooKeeper is not installed: apt-get install zookeeper default-jre-headless"
    run = run_of(rival({KVSTORE: 1000.0}), missing={"zookeeper": why})

    text = words(body(page.page_of(run)))

    assert f"zookeeper was not measured: {why}" in text
    assert any(words(each).startswith("zookeeper") for each in rows_with(run, why))
    assert f"| zookeeper |  |  |  |  |  |  | {why} |" in markdown(run)


def test_a_broken_part_is_named_and_the_others_are_shown() -> None:
    run = whole()
    run.parts[0].failures = [{"system": ETCD, "round": 2, "error": "ClusterError: <no> leader"}]

    text = words(body(page.page_of(run)))

    assert "Measurements failed in: P1-uniform. The others ran." in text
    assert "etcd, round 2: ClusterError: <no> leader" in text
    [judged] = rows_with(run, "put, 10 k keys, 10 x 50: rate")
    assert "goal reached, WITH PROBLEMS" in words(judged)
    assert [cell.get("class") for cell in judged][-1] == "verdict warn"


def test_a_run_that_was_broken_off_is_rendered_from_what_was_kept(tmp_path: Path) -> None:
    run = whole()
    run.parts[1].state = RUNNING
    run.parts.append(Part("P7", "P7", "leases", "scenario", WAITING))
    run.save(tmp_path)

    assert page.main([str(tmp_path)]) == 0

    text = (tmp_path / "index.html").read_text()
    assert "only in part: P3-serializable, P7." in words(body(text))
    assert text == page.page_of(run)
    assert (tmp_path / "report.md").read_text() == markdown(run)


def test_growth_that_should_not_be_is_marked_and_drawn_from_kept_sizes(tmp_path: Path) -> None:
    # JSON makes texts of the sizes: "1000" would stand before "20".
    whole().save(tmp_path)
    run = Run.load(tmp_path)

    [grows] = rows_with(run, "GROWS (should be flat)")

    assert "scan" in words(grows)
    assert "10: 20.0, 1,000: 2,000.0" in words(grows)


def test_the_page_is_complete_in_itself() -> None:
    run = whole()
    run.notes.append("<script>alert('&')</script>")

    text = page.page_of(run)

    for word in ("http://", "https://", "src=", "href=", "url(", "@import", "<script"):
        assert word not in text


def test_a_short_run_says_so() -> None:
    run = whole()
    run.settings["is_short"] = True

    assert "its figures are worth little" in words(body(page.page_of(run)))


def test_a_run_in_which_nothing_was_measured_has_a_page() -> None:
    run = run_of(Part("P1-uniform", "P1", "puts", "row", WAITING))

    assert "not measured" in words(body(page.page_of(run)))


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "there is no"), ("{", "is no JSON"), ("[]", "is no kvstore-bench/1")],
)
def test_a_folder_without_a_run_is_refused(
    content: str | None, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)

    with pytest.raises(RecordError, match=text):
        Run.load(tmp_path)
    assert page.main([str(tmp_path)]) == 1
    assert text in capsys.readouterr().err


def test_what_is_kept_is_whole(tmp_path: Path) -> None:
    run = whole()
    run.save(tmp_path)

    assert Run.load(tmp_path).settings == run.settings
    assert [part.name for part in Run.load(tmp_path).parts] == [part.name for part in run.parts]
    assert json.loads((tmp_path / FILE).read_text())["schema"] == "kvstore-bench/1"
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_another_form_of_ours_is_judged_by_itself() -> None:
    rates = {KVSTORE: [150.0], "kvstore-compiled": [250.0], ETCD: [100.0]}
    run = run_of(row("P1-uniform", rates))
    run.settings["systems"] = [*rates]

    pure, compiled = rows_with(run, "put, 10 k keys, 10 x 50: rate")

    assert "first reached, goal missed" in words(pure)
    assert "goal reached" in words(compiled)
    assert "2.5x" in words(compiled)
