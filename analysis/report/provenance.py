"""The last section: runs, seeds, versions, and how long each stage took (R21)."""

from collections.abc import Sequence

import altair as alt

from saelake.analysis.report import charts
from saelake.analysis.report.answers import Studied
from saelake.analysis.report.blocks import Block, Cell, Figure, Section, Table


def _runs(study: Studied) -> Sequence[Block]:
    answer = study.ask("runs", current=True)
    chart = charts.bars(
        alt.Y("stage:N", title=None, sort=None),
        alt.X("seconds:Q", title="seconds"),
        ("stage:N", alt.Tooltip("seconds:Q", format=",.1f"), "started:N"),
    )
    cells = [
        Cell("stage", "stage"),
        Cell("run_id", "run", "tokens"),
        Cell("started", "started (UTC)", "tokens"),
        Cell("seconds", "seconds"),
        Cell("seed", "seed"),
        Cell("device", "device"),
        Cell("torch", "torch"),
        Cell("transformers", "transformers"),
        Cell("sae_lens", "sae-lens"),
        Cell("duckdb", "duckdb"),
        Cell("saelake", "saelake"),
        Cell("content_hash", "content", "tokens"),
    ]
    rows = [row | {"content_hash": str(row["content_hash"])[:12], "started": str(row["started"])[:19]} for row in answer.rows]
    words = "Seconds that each stage took"
    return [
        Figure("How long each stage took", charts.spec(chart, 60 + 20 * len(answer.rows)), answer, words, rows),
        Table("Runs, seeds and versions", answer, cells, shown=60, rows=rows, folded=True),
    ]


SECTIONS = (
    Section(
        "runs",
        "Where it comes from",
        "Every number above is a query over these runs. Equal content hashes are equal rows, whatever machine computed them.",
        _runs,
        "R21",
        (),
    ),
)
