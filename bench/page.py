"""A run as one HTML page that fetches nothing: `python -m bench.page FOLDER` renders it again.

Reads the folder's results.json, measures nothing, and writes report.md and index.html beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench import plots
from bench.growth import MEANING
from bench.record import RecordError, Run
from bench.tables import (
    Table,
    markdown,
    summary,
    tables,
    verdict_table,
    warnings,
)
from bench.targets import FIRST, MISSED, OPEN, Verdict, judge
from kvstore.cli.bench.plot import document, figure, text

PAGE, TEXT = "index.html", "report.md"
STYLE = """
body { max-width: 1100px; } h2 { margin-top: 2.5rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
.wide { overflow-x: auto; } table { font-size: 13px; } th { vertical-align: bottom; }
th, td { padding: .2rem .5rem; } td { vertical-align: top; }
td.number, td:first-child { white-space: nowrap; }
td.text, th.text { text-align: left; } td.text { max-width: 26rem; overflow-wrap: break-word; }
.targets td:nth-child(2) { min-width: 13rem; } .targets td:nth-child(3) { min-width: 8.5rem; }
.targets th:nth-child(n+4):nth-child(-n+7) { text-align: right; }
td.verdict { text-align: left; font-weight: 600; min-width: 9rem; max-width: 16rem; }
td.verdict small { display: block; font-weight: normal; color: var(--dim);
                   overflow-wrap: break-word; }
.box { border: 1px solid var(--warn); border-radius: 6px; padding: .5rem 1rem; margin: 1rem 0; }
.box p { margin: .3rem 0; } .open { color: var(--dim); } .dim { color: var(--dim); }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr));
         gap: 0 1.5rem; }
.spread { stroke: var(--text); stroke-width: 1.3; fill: none; } svg .value { fill: var(--text); }
code { font-size: 12px; overflow-wrap: anywhere; }
"""


def page_of(run: Run) -> str:
    """Return the page."""
    parts = [
        f"<h1>kvstore beside its rivals: {text(run.name)}</h1>",
        f"<p>{text(run.started_at)}, <code>{text(run.command)}</code></p>",
    ]
    if found := warnings(run):
        parts += ["<div class='box'>", *(f"<p>{text(each)}</p>" for each in found), "</div>"]
    for ours in run.ours():
        verdicts = judge(run, ours)
        parts += [f"<h2>Targets: {text(ours)}</h2>", _counts(verdicts), _verdicts(run, ours)]
    parts.append(
        "<p class='dim'>Figures are medians over the rounds, in which the systems took turns; a "
        "ratio is that of the medians, its spread that of the single rounds. Of what must always "
        "hold the worst round counts.</p>"
    )
    parts += _section("Throughput", plots.throughput(run), "")
    parts += _section("Latency by percentile, milliseconds", plots.latencies(run), "small")
    if gaps := plots.gaps(run):
        parts += ["<h2>P8: seconds until writes resume, by share of kills</h2>", gaps]
    if grown := plots.growth(run):
        parts += _section("Growth: microseconds of a member's CPU per operation", grown, "")
        parts.append(f"<p class='dim'>{text(MEANING)}</p>")
    parts.append("<h2>All figures</h2>")
    first = len(run.ours())  # those tables stand above
    for table in tables(run)[first:]:
        parts += [f"<h3>{text(table.title)}</h3>", _table(table)]
    return document(f"kvstore benchmark: {run.name}", parts, STYLE)


def _section(title: str, found: Sequence[tuple[str, str]], style: str) -> list[str]:
    if not found:
        return []
    each = (f"<section><h3>{text(name)}</h3>{plot}</section>" for name, plot in found)
    return [f"<h2>{text(title)}</h2>", f"<div class='{style}'>", *each, "</div>"]


def _counts(verdicts: Sequence[Verdict]) -> str:
    missed = sum(verdict.state == MISSED for verdict in verdicts)
    still_open = sum(verdict.state == OPEN for verdict in verdicts)
    figures = [
        figure(str(len(verdicts) - missed - still_open), "reached"),
        figure(str(missed), "missed"),
        figure(str(still_open), "not measured"),
    ]
    return f"<div class='figures' title='{text(summary(verdicts))}'>{''.join(figures)}</div>"


def _verdicts(run: Run, ours: str) -> str:
    table = verdict_table(run, ours)
    rows = []
    for verdict, cells in zip(judge(run, ours), table.rows, strict=True):
        name, what, wanted, *numbers = cells[:-1]
        remarks = "".join(f"<small>{text(remark)}</small>" for remark in verdict.remarks)
        rows.append(
            f"<tr><td>{text(name)}</td><td class='text'>{text(what)}</td>"
            f"<td class='text'>{text(wanted)}</td>"
            + "".join(f"<td class='number'>{text(cell)}</td>" for cell in numbers)
            + f"<td class='verdict {_class(verdict)}'>{text(verdict.words)}{remarks}</td></tr>"
        )
    return _framed(table.columns, rows, "targets")


def _class(verdict: Verdict) -> str:
    if verdict.state == OPEN:
        return "open"
    if verdict.state == MISSED:
        return "bad"
    return "warn" if verdict.remarks or verdict.state == FIRST else "good"


def _table(table: Table) -> str:
    return _framed(
        table.columns,
        [
            "<tr>"
            + "".join(f"<td class='{_align(cell)}'>{text(cell)}</td>" for cell in row)
            + "</tr>"
            for row in table.rows
        ],
    )


def _align(cell: str) -> str:
    """Return the class of a cell: figures stand to the right in one line, words to the left."""
    return "number" if cell[:1].isdigit() and len(cell) < 40 else "text"


def _framed(columns: Sequence[str], rows: Sequence[str], style: str = "") -> str:
    head = "".join(f"<th class='text'>{text(column)}</th>" for column in columns)
    return f"<div class='wide {style}'><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def render(run: Run, folder: Path) -> Path:
    """Write report.md and index.html into the folder; return the latter's path."""
    (folder / TEXT).write_text(markdown(run))
    page = folder / PAGE
    page.write_text(page_of(run))
    return page


def main(argv: Sequence[str]) -> int:
    """Render the run of a folder again."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print(f"usage: python -m bench.page FOLDER\n\n{__doc__}", file=sys.stderr)
        return 2
    folder = Path(argv[0])
    try:
        page = render(Run.load(folder), folder)
    except RecordError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"written: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
