"""docs/by_k.svg, the README's picture: a figure of the report, drawn from the embedded study's lake. `make docs` writes it."""

from pathlib import Path

from saelake.analysis.report import charts
from saelake.analysis.report.answers import Studied
from saelake.analysis.report.blocks import Figure
from saelake.analysis.report.search import _by_k
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from tests.conftest import ROOT

PICTURE = ROOT / "docs" / "by_k.svg"


def picture(lake: Path) -> str:
    """The figure, in a light page's colours."""
    opened = Lake.existing(lake)
    with connect(opened, "organism") as con:
        study = Studied.of(con, opened, "organism")
        figure = next(block for block in _by_k(study) if isinstance(block, Figure))
        return charts.picture(figure.spec, figure.answer.rows, ".svg").decode() + "\n"
