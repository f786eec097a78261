"""All pages of the explorer, for one study of a lake."""

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import Response

from saelake.analysis.explorer.conditions import add_conditions
from saelake.analysis.explorer.console import add_console
from saelake.analysis.explorer.features import add_features
from saelake.analysis.explorer.prompts import add_prompts
from saelake.analysis.explorer.runs import add_runs
from saelake.analysis.explorer.study import Missing, ShownStudy

if TYPE_CHECKING:  # it loads torch
    from saelake.analysis.explorer.live import Live


def add_explorer(app: FastAPI, shown: ShownStudy, live: "Live | None" = None) -> None:
    """Adds the pages below /b/<secret>. The card of a feature comes last: its address is any two words."""

    @app.exception_handler(Missing)
    async def missing(request: Request, error: Missing) -> Response:
        return shown.page("missing.html", "", error.status_code, text=str(error.detail))

    if live is not None:
        from saelake.analysis.explorer.live import add_live

        add_live(app, shown, live)
    add_prompts(app, shown)
    add_conditions(app, shown)
    add_runs(app, shown)
    add_console(app, shown)
    add_features(app, shown)
