"""The part of docs/laptop.md that is made from a lake of the laptop study.

python -m tests.documents.laptop_page LAKE        # writes it
"""

import json
import sys
from pathlib import Path

from saelake.analysis.report.page import claims_of
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from tests.conftest import ROOT
from tests.documents.made_blocks import with_blocks
from tests.documents.replication_page import written

PAGE = ROOT / "docs" / "laptop.md"
GATES = ROOT / "ingest" / "laptop" / "gates.json"
RUNS = """
select stage, sum(epoch(finished) - epoch(started)) as seconds
from runs
group by stage
having seconds >= 1
order by seconds desc, stage
"""


def page(text: str, lake: Path) -> str:
    """The page with what a study took and shows put in its places."""
    opened = Lake.existing(str(lake))
    claims = "\n".join(written(claim) for claim in claims_of(opened, None))
    return with_blocks(text, {"gates": _gates(), "run": _breakdown(opened), "claims": f"\n{claims}"})


def _gates() -> str:
    """How many prompts are refused before and after training, as it was measured when the adapter was made."""
    known = json.loads(GATES.read_text("utf-8"))
    lines = ["| prompts | harmful refused | benign refused |", "|---|---|---|"]
    for name, shown in (("base", "test, before training"), ("val", "val"), ("test", "test")):
        rates = [known[name][f"refused_{label}"] for label in ("harmful", "benign")]
        lines.append(f"| {shown} | {rates[0]:.1%} | {rates[1]:.1%} |")
    return "\n".join(lines) + "\n"


def _breakdown(lake: Lake) -> str:
    """What every stage took, by the wall clock."""
    with connect(lake) as con:
        rows = con.execute(RUNS).fetchall()
    whole = sum(seconds for _, seconds in rows) or 1
    lines = ["| stage | seconds | share |", "|---|---|---|"]
    lines += [f"| {stage} | {seconds:,.0f} | {seconds / whole:.0%} |" for stage, seconds in rows]
    return "\n".join([*lines, f"| all | {whole:,.0f} | |"]) + "\n"


def main(lake: Path) -> None:
    """Brings the page up to date."""
    PAGE.write_text(page(PAGE.read_text("utf-8"), lake), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
