"""Puts the sections into one HTML file that needs nothing else: no network, no server, no second file.

    write_report(lake, "organism", Path("report.html"))

Charts are drawn by Vega, which is in the page. A content security policy allows the page's own scripts, by their hashes, and
nothing else: no request leaves it, and text from models or prompt sets stays text.
"""

import base64
import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import jinja2
from markupsafe import Markup

from saelake import queries
from saelake.analysis.report.answers import Answer, Studied
from saelake.analysis.report.blocks import Beside, Block, Claim, Claims, Figure, Note, Section, Table, Tiles, count, percent
from saelake.analysis.report.causes import BACKUPS_PAGE
from saelake.analysis.report.claims import claims
from saelake.analysis.report.published import figures
from saelake.analysis.report.sections import SECTIONS
from saelake.queries.output import printable
from saelake.warehouse.catalog import connect, one_study
from saelake.warehouse.durable import clear_drafts, write_atomic
from saelake.warehouse.errors import LeftOut, view_errors
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord

FOLDER = Path(__file__).parent
ENDING = ("direction",)
"""Stages without which those that follow are not computed, however often they are asked for."""


@dataclass(frozen=True)
class ShownSection:
    """A section as the page shows it."""

    section: Section
    blocks: Sequence[Block]
    missing: str
    """What has to be run for it; empty if it is there."""
    without_input: Sequence[tuple[str, str]]
    """Its stages that had nothing to work on, or the one at which the analysis ended before them, each with the reason."""
    left_out: str = ""
    """What a shared set came without that it would show; empty if nothing."""


def write_report(lake: Lake, recipe: str | None, target: Path, *, with_completions: bool = False) -> int:
    """Writes the report of a study, whole or not at all; returns its bytes.

    Args:
        recipe: the study, where the lake holds several.
        with_completions: also answers to target prompts, folded; the page is then its owner's alone.
    Raises UserError for a lake without studies, or with several where none is named.
    """
    name = one_study(lake, recipe)
    has_backups_page = _has_backups_page(target)
    with connect(lake, name, alone=True) as con:
        html = page(Studied.of(con, lake, name, with_completions=with_completions, has_backups_page=has_backups_page))
    clear_drafts(target)  # of killed processes
    write_atomic(target, html, private=with_completions)
    return len(html.encode())


def _has_backups_page(target: Path) -> bool:
    beside = target.with_name(BACKUPS_PAGE)
    return beside != target and beside.exists()


def claims_of(lake: Lake, recipe: str | None) -> list[Claim]:
    """What a study shows of each of the paper's claims, and cannot show; raises UserError as `write_report` does."""
    name = one_study(lake, recipe)
    with connect(lake, name, alone=True) as con:
        return claims(Studied.of(con, lake, name))


def page(study: Studied) -> str:
    """The page of a study, as text."""
    reasons = queries.reasons(study.con)
    shown = [_shown(section, study, reasons) for section in SECTIONS]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"cell": partial(_cell, study), "plain": plain_text, "percent": percent, "count": count}
    environment.tests |= {
        "figure": _is(Figure),
        "table": _is(Table),
        "note": _is(Note),
        "beside": _is(Beside),
        "tiles": _is(Tiles),
        "claims": _is(Claims),
    }
    figures_of = {id(block): f"figure-{i}" for i, block in enumerate(_blocks(shown, Figure))}
    answer_of = {id(answer): f"answer-{i}" for i, answer in enumerate(study.asked)}
    data = {
        "answers": {answer_of[id(a)]: {"name": a.question, "columns": a.columns, "rows": _matrix(a)} for a in study.asked},
        "figures": {figures_of[id(f)]: _drawing(f, answer_of) for f in _blocks(shown, Figure)},
    }
    scripts = [_bundle(), (FOLDER / "page.js").read_text(encoding="utf-8")]
    return environment.get_template("page.html.jinja").render(
        study=study,
        facts=_facts(study),
        shown=shown,
        figure_id=lambda block: figures_of[id(block)],
        answer_id=lambda answer: answer_of[id(answer)],
        numeric=_is_numeric,
        published=lambda section, here: _published(study, section, here),
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        data=Markup(_script_json(data)),
        scripts=[Markup(script) for script in scripts],
        hashes=Markup(" ".join(_csp_hash(script) for script in scripts)),
    )


def _shown(section: Section, study: Studied, reasons: Mapping[str, str]) -> ShownSection:
    absent = study.absent(section.stages)
    unknown = [name for name in section.questions if name not in queries.names()]
    if absent or unknown:
        ended = [(stage, reasons[stage]) for stage in ENDING if absent and stage in reasons]
        return ShownSection(section, [], section.command.format(recipe=study.recipe), ended)
    mine = [(stage, why) for stage, why in reasons.items() if any(fnmatch.fnmatch(stage, asked) for asked in section.stages)]
    try:
        with view_errors(study.con):
            return ShownSection(section, list(section.render(study)), "", mine)
    except LeftOut as error:
        return ShownSection(section, [], "", mine, str(error))


def _blocks(shown: Sequence[ShownSection], kind: type) -> list[Any]:
    return [block for one in shown for block in one.blocks if isinstance(block, kind)]


def _is(kind: type) -> Any:
    return lambda block: isinstance(block, kind)


def _matrix(answer: Answer) -> list[list[Any]]:
    return [[row[name] for name in answer.columns] for row in answer.carried]


def _drawing(figure: Figure, answer_of: Mapping[int, str]) -> dict[str, Any]:
    """A chart with its rows, or with the answer that these are."""
    rows = {"answer": answer_of[id(figure.answer)]} if figure.rows is None else {"rows": list(figure.rows)}
    return {"spec": figure.spec, **rows}


def _facts(study: Studied) -> list[tuple[str, str]]:
    """What the study is about: a few lines for the head of the page."""
    con = study.con
    facts = [("study", study.recipe)]
    if (record := study.ingested) is not None:
        config = record.config
        facts.append(("model", f"{study.model or 'a local model'} · {str(config.get('model_hash', ''))[:40]}"))
        fired = study.records.get("activations", record)
        n, widths, l0 = (0, "", 0.0) if "saes" in fired.withheld else study.saes()
        if n:
            facts.append(("SAEs", f"{n}, width {widths}, mean L0 {l0:.1f}"))
        labels = _rows_of(con, record, "prompts", "select label, count(*) from prompts group by label order by label desc")
        facts.append(("behaviour", study.words["name"]))
        facts.append(("judge", f"{study.judge}: whose verdicts decide what flips"))
        if labels:
            facts.append(("prompts", ", ".join(f"{n:,} {study.called(label)}" for label, n in labels)))
        for (n_activations,) in _rows_of(con, fired, "activations", "select count(*) from activations"):
            facts.append(("activations", f"{n_activations:,} non-zeros"))
    device = {str(r.hardware.get("device", "")) for r in study.records.values()}
    finished = max((r.finished for r in study.records.values()), default="")
    facts.append(("computed", f"on {', '.join(sorted(device))}, last run finished {finished[:16].replace('T', ' ')} UTC"))
    withheld = sorted({name for r in study.records.values() for name in r.withheld})
    if withheld:
        facts.append(("added from a shared set", f"which left out {', '.join(withheld)}, in part or whole"))
    return facts


def _rows_of(con: duckdb.DuckDBPyConnection, record: RunRecord, table: str, statement: str) -> list[Any]:
    """The rows of a statement about a table of a run; none where the run was shared without the table."""
    return [] if table in record.withheld else con.execute(statement).fetchall()


def _cell(study: Studied, value: Any, kind: str) -> str:
    return cell_text(study.called(value) if kind == "label" else value, kind)


def _published(study: Studied, section: str, here: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(what, as published, here) of a section; nothing where the model is not the paper's."""
    return [(what, value, here.get(key, "–")) for key, (what, value) in figures(study.model, section).items()]


def cell_text(value: Any, kind: str = "auto") -> str:
    """A value as a table shows it; control characters are spelt out."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if kind == "share" and isinstance(value, int | float):
        return percent(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list):
        return printable(", ".join(str(item) for item in value))
    return printable(str(value))


def _is_numeric(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(isinstance(row[name], int | float) and not isinstance(row[name], bool) for row in rows)


def plain_text(text: str) -> str:
    """Lines of text in which control characters are spelt out."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _script_json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever text is in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    import vl_convert
    from altair import SCHEMA_VERSION

    text: str = vl_convert.javascript_bundle(vl_version=SCHEMA_VERSION[1:].rpartition(".")[0])  # type: ignore[call-arg]
    return text.replace("</script", "<\\/script")


def _csp_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
