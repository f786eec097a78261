"""The referee's page: the part of docs/replication.md that is made from the lake of the embedded study.

python -m tests.documents LAKE        # writes it, among other things
"""

from pathlib import Path

from saelake.analysis.report.blocks import Claim
from saelake.analysis.report.page import claims_of
from saelake.warehouse.records import Lake
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "replication.md"
BEGIN, END = "<!-- claims: begin -->\n", "<!-- claims: end -->\n"


def page(text: str, lake: Path) -> str:
    """The page with what a study shows put in its place."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{PAGE.name} has no line {BEGIN.strip()}"
    assert end, f"{PAGE.name} has no line {END.strip()}"
    rows = "\n".join(_written(claim) for claim in claims_of(Lake.existing(str(lake)), None))
    return f"{before}{BEGIN}\n{rows}\n{END}{after}"


def _written(claim: Claim) -> str:
    published = f" *{claim.published}*" if claim.published else ""
    return f"**{claim.row}. {claim.claim}**{published}\n- This study shows: {claim.shows}\n- It cannot show: {claim.cannot}\n"
