"""The pages of an annotation study: one feature per screen, an answer durable before the next one is shown."""

from collections.abc import Sequence
from contextlib import closing

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from saelake.analysis.meaning import annotation_study as studies
from saelake.analysis.meaning.annotation_study import AnnotationStudy, State
from saelake.analysis.served.cards import explanations_of, samples_of
from saelake.analysis.served.server import form_of, render
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake


def add_study(app: FastAPI, lake: Lake, study: AnnotationStudy) -> None:
    """Adds the pages of an annotation study, below /a/<the annotator's secret>."""
    with closing(connect(lake, study.recipe, alone=True)) as con:
        samples = samples_of(con, [(item.sae_id, item.feature_id) for item in study.items])
        explanations = explanations_of(con, [(item.sae_id, item.feature_id) for item in study.items])
    orders = {annotator: study.order(annotator) for annotator in study.tokens}

    def whose(token: str) -> str:
        annotator = study.annotator(token)
        if annotator is None:
            raise HTTPException(404, "there is no such page: use the whole link that you were given")
        return annotator

    def page(token: str, annotator: str, place: int, now: State, problem: str = "", chosen: Sequence[str] = ()) -> Response:
        item = study.items[orders[annotator][place - 1]]
        key = (item.sae_id, item.feature_id)
        mine = now.answers[annotator]
        return render(
            "item.html",
            422 if problem else 200,
            base=f"/a/{token}",
            annotator=annotator,
            place=place,
            n_items=len(study.items),
            n_done=len(mine),
            explanations=explanations.get(key, []),
            samples=samples.get(key, []),
            categories=study.categories,
            none=studies.NONE,
            chosen=chosen or mine.get(orders[annotator][place - 1], ()),
            can_undo=bool(mine),
            is_closed=now.is_closed,
            problem=problem,
        )

    def following(token: str, annotator: str, place: int) -> Response:
        """The next feature without an answer, from a place on and round again; the end if there is none."""
        mine = studies.state(lake, study).answers[annotator]
        order = orders[annotator]
        places = [*range(place, len(order)), *range(place)]
        for one in places:
            if order[one] not in mine:
                return RedirectResponse(f"/a/{token}/{one + 1}", 303)
        return RedirectResponse(f"/a/{token}/done", 303)

    def check_place(place: int) -> None:
        if not 1 <= place <= len(study.items):
            raise HTTPException(404, f"this annotation study has features 1 to {len(study.items)}")

    @app.get("/a/{token}")
    def start(token: str) -> Response:
        return following(token, whose(token), 0)

    @app.get("/a/{token}/done")
    def done(token: str) -> Response:
        annotator = whose(token)
        now = studies.state(lake, study)
        return render(
            "done.html",
            base=f"/a/{token}",
            annotator=annotator,
            n_items=len(study.items),
            n_done=len(now.answers[annotator]),
            is_closed=now.is_closed,
        )

    @app.post("/a/{token}/undo")
    def undo(token: str) -> Response:
        annotator = whose(token)
        item = studies.withdraw(lake, study, annotator)
        place = 1 if item is None else orders[annotator].index(item) + 1
        return RedirectResponse(f"/a/{token}/{place}", 303)

    @app.get("/a/{token}/{place}")
    def show(token: str, place: int) -> Response:
        annotator = whose(token)
        check_place(place)
        return page(token, annotator, place, studies.state(lake, study))

    @app.post("/a/{token}/{place}")
    async def answer(token: str, place: int, request: Request) -> Response:
        annotator = whose(token)
        check_place(place)
        chosen = (await form_of(request)).get("category", [])
        try:
            studies.answer(lake, study, annotator, orders[annotator][place - 1], chosen)
        except UserError as error:
            kept = [one for one in chosen if one in study.answers]
            return page(token, annotator, place, studies.state(lake, study), str(error), kept)
        return following(token, annotator, place)
