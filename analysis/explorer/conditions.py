"""The explorer's conditions: what share of prompts each flips, and its answers beside the unmodified model's."""

from fastapi import FastAPI
from fastapi.responses import Response

from saelake.analysis.explorer.study import ShownStudy, found, listed, page_length
from saelake.queries.rows import rows


def add_conditions(app: FastAPI, shown: ShownStudy) -> None:
    """Adds the list of conditions and a page for each."""
    limit = page_length("condition_answers")
    labels = shown.choices("label", "prompts")

    @app.get("/b/{token}/conditions")
    def conditions(token: str) -> Response:
        shown.check(token)
        with shown.cursor() as con:
            flips = rows(con, "condition_list")
        return shown.page("conditions.html", "conditions", found=flips)

    @app.get("/b/{token}/conditions/{condition}")
    def condition(token: str, condition: str, k: str = "", label: str = "", page: int = 1) -> Response:
        shown.check(token)
        asked = {"k": k, "label": label}
        with shown.cursor() as con:
            about = next((one for one in rows(con, "condition_list") if one["condition"] == condition), None)
            if about is None:
                found(con, "condition_answers", condition=condition)
            skip = limit * max(page - 1, 0)
            answers, problem = listed(con, "condition_answers", asked, condition=condition, skip=skip)
            asked_k = "select distinct k from ablations where condition = ? and k is not null order by k"
            levels = [k for (k,) in con.execute(asked_k, [condition]).fetchall()]
        return shown.page(
            "condition.html",
            "conditions",
            422 if problem else 200,
            condition=condition,
            about=about,
            asked=asked,
            page=max(page, 1),
            limit=limit,
            levels=levels,
            known_labels=labels,
            found=answers,
            problem=problem,
        )
