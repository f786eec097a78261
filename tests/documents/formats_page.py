"""The tables of docs/formats.md: every format with the rows that a lake took from its sample, and those that it wrote."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from saelake.formats.names import names
from saelake.formats.registry import load
from saelake.formats.transfer import bring_in, write_out
from tests.attach import LINES
from tests.conftest import ROOT
from tests.documents.made_blocks import table, with_blocks
from tests.formats.samples import INPUTS
from tests.formats.written import OUTPUTS, written_lake

PAGE = ROOT / "docs" / "formats.md"
CHECKED = {
    "answers": "joined by text; read by the judge `phrases`",
    "catalog": "DuckDB runs the script, and shows every table and comment; `datasets` reads the card",
    "circuit_tracer": "node by node; a small graph",
    "delphi": "delphi reads ours and writes theirs, where it is installed; equal non-zeros",
    "direction": "values against the pipeline's own tensors; of another width or run: refused",
    "features": "round trip of all three kinds",
    "harmbench": "a file of its shape, with labels; joined by text",
    "inspect": "inspect_ai writes one, where it is installed",
    "jailbreakbench": "a file of its shape; rows without a prompt are counted",
    "lm_eval": "a file of its shape",
    "neuronpedia": "field by field, against the package `neuronpedia` where it is installed; round trip",
    "saedashboard": "sae_dashboard's own classes read it, where it is installed; the bundle table by table",
    "saelens": "SAELens itself makes one; what fires is what the engine finds on the same tokens",
    "strongreject": "a file of its shape",
    "top_activations": "`datasets` loads it; round trip",
}


def page() -> str:
    """The page with its tables made anew."""
    return with_blocks(PAGE.read_text(encoding="utf-8"), {"formats": _formats(), "in": _in(), "out": _out(), "attach": _attach()})


def _formats() -> str:
    rows = []
    for name in names():
        one = load(name)
        options = [f"`--{option}`" for option in sorted(one.reads | one.writes)]
        rows.append([f"`{name}`", one.what, "yes" if one.read else "-", "yes" if one.write else "-", ", ".join(options) or "-"])
    return table(["format", "what its files hold", "in", "out", "options"], rows)


def _in() -> str:
    rows = []
    for sample in INPUTS:
        with tempfile.TemporaryDirectory() as folder:
            lake = sample.lake(Path(folder) / "lake")
            (Path(folder) / "source").mkdir()
            record = bring_in(lake.root, sample.format, str(sample.write(Path(folder) / "source")), sample.asked)
        brought = {table.name: table.n_rows for table in record.tables}
        rows.append([f"`{sample.format}`", sample.what, _counts(brought), CHECKED[sample.format]])
    return table(["format", "source", "rows in", "how it is checked"], rows)


def _out() -> str:
    rows = []
    for name, (asked, _) in OUTPUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            written = write_out(written_lake(Path(folder) / "lake").root, name, Path(folder) / "out", asked)
        rows.append([f"`{name}`", _counts(written), CHECKED[name]])
    return table(["format", "rows out", "how it is checked"], rows)


def _attach() -> str:
    rows = [
        [one.tool, f"`{one.line}`", f"`{one.package}`" if one.package else "not executed: no package has it"] for one in LINES
    ]
    return table(["tool", "line", "executed where installed"], rows)


def _counts(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in rows.items())
