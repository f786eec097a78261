"""The explorer's runs: where every row of the lake comes from."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from fastapi import FastAPI
from fastapi.responses import Response

from saelake.analysis.explorer.study import ShownStudy, found
from saelake.queries.rows import Row, rows


class Origin(NamedTuple):
    """A run and what it was computed from."""

    run_id: str
    stage: str
    is_current: bool
    parents: "list[Origin]"


def add_runs(app: FastAPI, shown: ShownStudy) -> None:
    """Adds the list of the study's runs and a page for each run of the lake."""

    @app.get("/b/{token}/runs")
    def runs(token: str) -> Response:
        shown.check(token)
        with shown.cursor() as con:
            listed = [one for one in rows(con, "runs") if one["current"] or one["recipe"] == shown.recipe]
        return shown.page("runs.html", "runs", found=listed)

    @app.get("/b/{token}/runs/{run_id}")
    def run(token: str, run_id: str) -> Response:
        shown.check(token)
        with shown.cursor() as con:
            told = found(con, "run", run_id=run_id)[0]
            known = {one["run_id"]: one for one in rows(con, "runs")}
        texts = {name: _indented(told[name]) for name in ("config", "hardware", "versions", "about")}
        built_on_it = [one for one in known.values() if run_id in one["parents"]]
        return shown.page(
            "run.html", "runs", run=told, texts=texts, origin=_origin(run_id, known, set()), built_on_it=built_on_it
        )


def _origin(run_id: str, known: Mapping[str, Row], above: set[str]) -> Origin:
    """The tree of what a run comes from; a run that is not there has no parents, nor does one that comes from itself."""
    one = known.get(run_id)
    if one is None or run_id in above:
        return Origin(run_id, "not in this lake" if one is None else one["stage"], False, [])
    parents = [_origin(parent, known, above | {run_id}) for parent in one["parents"]]
    return Origin(run_id, one["stage"], one["current"], parents)


def _indented(text: str | None) -> str:
    """JSON as one reads it; nothing where it says nothing."""
    told = json.loads(text or "{}")
    return json.dumps(told, indent=2, ensure_ascii=False) if told else ""
