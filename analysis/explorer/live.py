"""The explorer's live page: a prompt, what fires on it, and its answer under edits beside the unmodified one."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from saelake.analysis import verbs
from saelake.analysis.engine.asked import Edit, feature_ids
from saelake.analysis.engine.library import Engine
from saelake.analysis.explorer.edits import FORM, Vectors, check_kept, edits_of, in_python, in_shell, read_lines, selected
from saelake.analysis.explorer.study import ShownStudy, found
from saelake.analysis.search.directions import stored_direction
from saelake.analysis.served.cards import visible
from saelake.analysis.served.server import form_of
from saelake.ingest.loaded import Loaded
from saelake.ingest.recipe import Recipe
from saelake.ingest.study import open_study
from saelake.queries.rows import Row, rows
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake

N_TOP = 10
"""Features of a token that are listed."""
MOST_FIRING = 1_000
"""Features of a prompt that are looked up in the lake, the strongest."""
MOST_TOKENS = 256
"""New tokens that a page may ask for."""
SIDES = ("unmodified", "edited")


@dataclass
class Live:
    """A subject with all SAEs of a study, loaded once; one request computes at a time."""

    recipe: Recipe
    kept: dict[str, str] = field(default_factory=dict)
    """Name of a condition -> what became of the run that keeps it"""
    _lock: Lock = field(default_factory=Lock)

    @cached_property
    def engine(self) -> Engine:
        loaded = Loaded(open_study(self.recipe))
        engine = Engine(loaded.subject, list(loaded.sae_loader.values()))
        engine.activations(["Hello"])  # the weights are read now, so that no request waits for them
        return engine

    @property
    def max_new_tokens(self) -> int:
        """As many as the study's own answers have."""
        return min(self.recipe.generation.max_new_tokens, MOST_TOKENS)

    def fired(self, prompt: str) -> tuple[list[Row], dict[tuple[str, int], float]]:
        """The tokens of a prompt, each with the features that fire most on it, and the largest activation of each feature.

        BOS counts for no feature.
        """
        with self._lock:
            tokens = self.engine.subject.encode(prompt)
            firings = self.engine.activations([prompt])
        by_pos: dict[int, list[tuple[float, str, int]]] = {}
        largest: dict[tuple[str, int], float] = {}
        pos, sae_id, feature_id, activation = (
            firings[name].to_pylist() for name in ("pos", "sae_id", "feature_id", "activation")
        )
        for at, sae, feature, value in zip(pos, sae_id, feature_id, activation, strict=True):
            by_pos.setdefault(at, []).append((value, sae, feature))
            if tokens.roles[at] != "bos":
                largest[sae, feature] = max(value, largest.get((sae, feature), 0.0))
        listed = [
            {
                "pos": at,
                "text": visible(self.engine.subject.tokenizer.decode([token])),
                "role": role,
                "features": sorted(by_pos.get(at, ()), reverse=True)[:N_TOP],
            }
            for at, (token, role) in enumerate(zip(tokens.token_ids, tokens.roles, strict=True))
        ]
        return listed, largest

    def answered(self, prompt: str, edits: Sequence[Edit], max_new_tokens: int) -> Iterator[dict[str, Any]]:
        """What the model says unmodified and under edits, as it says it: P(target) and the first token, then the text so far.

        A mistake is told as one.
        """
        told: SimpleQueue[dict[str, Any] | None] = SimpleQueue()

        def work() -> None:
            try:
                with self._lock:
                    asked = [[], list(edits)] if edits else [[]]
                    prompts = [prompt] * len(asked)
                    first = self.engine.next_token(prompts, edits=asked)
                    for side, p_target, token in zip(SIDES, first.p_target.tolist(), first.first_token, strict=False):
                        told.put({"side": side, "p_target": p_target, "first_token": visible(token)})

                    def tell(place: int, text: str) -> None:
                        told.put({"side": SIDES[place], "text": text})

                    self.engine.answer(prompts, max_new_tokens=max_new_tokens, edits=asked, on_token=tell)
            except UserError as error:
                told.put({"problem": str(error)})
            finally:
                told.put(None)

        Thread(target=work, daemon=True).start()
        while (one := told.get()) is not None:
            yield one

    def keep(self, lake: Lake, condition: str, features: str, done: Callable[[], None]) -> None:
        """Computes a run of held features beside the requests; raises UserError for a name or features that are none."""
        study = verbs.open_ablation(self.recipe, lake, condition, features)
        if self.kept.get(condition) == "computing":
            raise UserError(f"{condition} is being computed already")
        self.kept[condition] = "computing"

        def work() -> None:
            try:
                record = verbs.ablate_study(study, lake, condition, features)
                done()
                self.kept[condition] = record.run_id
            except UserError as error:
                self.kept[condition] = f"failed: {error}"

        Thread(target=work, daemon=True).start()


def add_live(app: FastAPI, shown: ShownStudy, live: Live) -> None:
    """Adds the live page."""
    assert live.engine is not None, "it is loaded before anybody asks"
    vectors = Vectors(lambda sae, feature_id: _decoder_row(live.engine, sae, feature_id), lambda layer: _direction(shown, layer))

    def page(prompt: str, edits: str, max_new_tokens: int, status: int = 200, **values: Any) -> Response:
        told = {"problem": "", "sides": {}, "tokens": [], "telling": [], "asked": False} | values
        lines = {"python": "", "shell": ""} | _said(prompt, edits, max_new_tokens, shown.recipe)
        limits = {"max_new_tokens": max_new_tokens, "most_tokens": MOST_TOKENS, "form": FORM}
        return shown.page("live.html", "live", status, prompt=prompt, edits=edits, kept=live.kept, **lines, **limits, **told)

    @app.get("/b/{token}/live")
    def show(token: str, request: Request, prompt_id: int | None = None, prompt: str = "") -> Response:
        shown.check(token)
        if prompt_id is not None:
            with shown.cursor() as con:
                found(con, "prompt", prompt_id=prompt_id, n=1)
                prompt = con.execute("select text from prompts where prompt_id = ?", [prompt_id]).fetchall()[0][0]
        elif not prompt:
            with shown.cursor() as con:
                prompt = next((one["text"] for one in rows(con, "first_prompt")), "")
        return page(prompt, "\n".join(request.query_params.getlist("edit")), live.max_new_tokens)

    @app.post("/b/{token}/live")
    async def ask(token: str, request: Request) -> Response:
        shown.check(token)
        prompt, edits, n = _asked(await form_of(request), live)
        return await run_in_threadpool(answered_whole, prompt, edits, n)

    def answered_whole(prompt: str, edits: str, n: int) -> Response:
        """The page with everything in it, for browsers without scripts."""
        sides: dict[str, Row] = {}
        problem = ""
        try:
            for told in live.answered(prompt, edits_of(read_lines(edits), vectors), n):
                problem = told.get("problem", problem)
                if "side" in told:
                    sides.setdefault(told["side"], {}).update(told)
            tokens, telling = _fired(shown, live, prompt)
        except UserError as error:
            return page(prompt, edits, n, 422, problem=str(error))
        return page(
            prompt, edits, n, 422 if problem else 200, problem=problem, sides=sides, tokens=tokens, telling=telling, asked=True
        )

    @app.post("/b/{token}/live/tokens")
    async def tokens(token: str, request: Request) -> Response:
        shown.check(token)
        prompt, edits, n = _asked(await form_of(request), live)
        return await run_in_threadpool(fired, prompt, edits, n)

    def fired(prompt: str, edits: str, n: int) -> Response:
        try:
            listed, telling = _fired(shown, live, prompt)
        except UserError as error:
            return page(prompt, edits, n, 422, problem=str(error))
        return page(prompt, edits, n, tokens=listed, telling=telling)

    @app.post("/b/{token}/live/answer")
    async def answer(token: str, request: Request) -> Response:
        shown.check(token)
        prompt, edits, n = _asked(await form_of(request), live)

        def lines() -> Iterator[str]:
            try:
                asked = read_lines(edits)
                yield json.dumps(_said(prompt, edits, n, shown.recipe)) + "\n"
                for told in live.answered(prompt, edits_of(asked, vectors), n):
                    yield json.dumps(told) + "\n"
            except UserError as error:
                yield json.dumps({"problem": str(error)}) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @app.post("/b/{token}/live/keep")
    async def keep(token: str, request: Request) -> Response:
        shown.check(token)
        form = await form_of(request)
        prompt, edits, n = _asked(form, live)
        condition = form.get("condition", [""])[0].strip()
        try:
            features = selected(read_lines(edits))
            await run_in_threadpool(live.keep, shown.lake, condition, features, shown.show_again)
        except UserError as error:
            return page(prompt, edits, n, 422, problem=str(error))
        return RedirectResponse(f"{shown.base}/live/kept", 303)

    @app.get("/b/{token}/live/kept")
    def kept(token: str) -> Response:
        shown.check(token)
        return shown.page("kept.html", "live", kept=live.kept)


def _asked(form: Mapping[str, list[str]], live: Live) -> tuple[str, str, int]:
    """Prompt, edits and number of new tokens of a form."""
    prompt, edits, n = (form.get(name, [""])[0] for name in ("prompt", "edits", "max_new_tokens"))
    wanted = int(n) if n.isdecimal() else live.max_new_tokens
    return prompt.replace("\r\n", "\n"), edits, min(max(wanted, 1), MOST_TOKENS)


def _said(prompt: str, edits: str, n: int, recipe: str) -> dict[str, str]:
    """The edits as a line of Python and as a command; nothing of what cannot be said so."""
    said = {}
    try:
        lines = read_lines(edits)
        said["python"] = in_python(lines, prompt, n)
        check_kept(lines)
        said["shell"] = in_shell(lines, recipe, "my_edits")
    except UserError:
        pass
    return said


def _fired(shown: ShownStudy, live: Live, prompt: str) -> tuple[list[Row], list[Row]]:
    """The tokens of a prompt with their features, and the features that tell something there, by what the lake knows of them."""
    layer = {sae_id: n for n, sae_id in shown.saes}
    tokens, largest = live.fired(prompt)
    for token in tokens:
        token["features"] = [(layer[sae], sae, feature, value) for value, sae, feature in token["features"]]
    strongest = sorted(largest, key=lambda one: -largest[one])[:MOST_FIRING]
    with shown.cursor() as con:
        telling = rows(con, "telling", features=strongest) if strongest else []
    return tokens, [one | {"max_activation": largest[one["sae_id"], one["feature_id"]]} for one in telling]


def _decoder_row(engine: Engine, sae: str | int, feature_id: int) -> np.ndarray:
    held = engine.saes[engine.sae_id(sae)]
    ids = torch.from_numpy(feature_ids([feature_id], held))
    return np.asarray(held.decoder_rows(ids, torch.device("cpu"))[0].float().numpy())


def _direction(shown: ShownStudy, layer: int | None) -> tuple[int, np.ndarray]:
    with shown.cursor() as con:
        told = stored_direction(con, layer)
    if told is None:
        raise UserError("the study has no chosen direction" if layer is None else f"the study has no direction of layer {layer}")
    return told
