"""The referee's page: the part of docs/replication.md that is made from the lake of the embedded study.

python -m tests.documents LAKE        # writes it, among other things
"""

from pathlib import Path

from saelake.analysis.report.blocks import Claim
from saelake.analysis.report.page import claims_of
from saelake.warehouse.lake import Lake
from tests.conftest import ROOT
from tests.documents.made_blocks import with_blocks

PAGE = ROOT / "docs" / "replication.md"


def page(text: str, lake: Path) -> str:
    """The page with what a study shows put in its place."""
    rows = "\n".join(written(claim) for claim in claims_of(Lake.existing(str(lake)), None))
    return with_blocks(text, {"claims": f"\n{rows}"})


def written(claim: Claim) -> str:
    """A claim as these pages show it."""
    published = f" *{claim.published}*" if claim.published else ""
    return f"**{claim.row}. {claim.claim}**{published}\n- This study shows: {claim.shows}\n- It cannot show: {claim.cannot}\n"
