"""The engine from Python: a loaded model, SAEs of SAELens, prompts, edits. docs/library.md shows it at work.

    subject = saelake.Subject(model, tokenizer, target_tokens=["I"])
    engine = saelake.Engine(subject, saes)
    engine.answer(prompts, ablate={5: [17, 4]}, max_new_tokens=32).texts

It is a front to the one engine that a recipe's stages use (engine.py): prompts become numbers, edits become requests.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from saelake.analysis.engine.asked import (
    Add,
    Edit,
    Key,
    MeanAblate,
    Positions,
    ProjectOut,
    SaeTable,
    direction_of,
    feature_ids,
    features_of,
    interventions,
    resolved,
)
from saelake.analysis.engine.engine import AblationEngine, NextToken
from saelake.analysis.engine.named import edits_by_prompt, named_edits
from saelake.analysis.engine.prompts import Prompt, read_prompts
from saelake.analysis.engine.requests import DirectionEdit, FeatureSet, Request, request_of, with_answer
from saelake.analysis.engine.watch import Activations
from saelake.ingest.saes.given import saes_of
from saelake.ingest.saes.sae import Sae, check_fits
from saelake.ingest.subject import Subject
from saelake.ingest.tokenized import Tokenized
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError

ACTIVATIONS = pa.schema(
    [
        ("prompt", pa.int64()),
        ("pos", pa.int32()),
        ("sae_id", pa.dictionary(pa.int16(), pa.string())),
        ("feature_id", pa.int32()),
        ("activation", pa.float32()),
    ]
)


class NextTokens(NamedTuple):
    """What the model says next after each prompt."""

    p_target: np.ndarray
    """(n,) float32: probability that the first token is a target token."""
    first_token: list[str]
    """The most probable first token, as text without spaces around it; empty for a special one, as the end of a turn is."""
    first_token_id: np.ndarray
    """(n,) int64"""


class Answers(NamedTuple):
    """Greedy answers, with what the first token's distribution was."""

    texts: list[str]
    """One for each prompt (n), in their order."""
    token_ids: list[list[int]]
    """Of each answer, without the end-of-turn token."""
    p_target: np.ndarray
    """(n,) float32: probability that the first token is a target token."""
    first_token: list[str]
    """The most probable first token, as text without spaces around it; empty for a special one, as the end of a turn is."""
    first_token_id: np.ndarray
    """(n,) int64"""


class Engine:
    """A model with SAEs, asked for answers, next tokens and activations under edits.

    Prompts are texts, chats or lists of token ids. Edits are given by name for all of them, or as `edits`: one list for all, or
    one list per prompt. A key is an sae_id, a hook's name, a Site, or a layer (for a vector: where that one's SAEs write, or
    resid_post); positions are places from either end, or roles.

        ablate={key: ids}          clamp={key: {id: value}}          add={key: (vector, scale)}
        project_out=vector (after every block) or {key: vector}      positions=... (of those four), answering=...

    Args:
        saes: SAEs of SAELens, which know their hooks, or a mapping from hooks, Sites or layers (resid_post), at which
            they are then read, to SAEs.
        batch_tokens: the most padded tokens per forward pass; by default what suits the device.
    Raises UserError for an SAE that does not fit the model, or is of a kind that cannot be edited exactly; its calls for an edit
    that does not fit model, SAE or prompt, before anything is computed.
    """

    @arguments.without_recipe()
    def __init__(self, subject: Subject, saes: Any, *, batch_tokens: int | None = None) -> None:
        if not isinstance(subject, Subject):
            raise UserError(f"a {type(subject).__name__} is not a Subject: give saelake.Subject(model, tokenizer)")
        if batch_tokens is not None:
            batch_tokens = arguments.whole("batch_tokens", batch_tokens, 1)
        self.subject = subject
        found = saes_of(saes, subject)
        for sae in found:
            check_fits(sae, subject)
        self._table = SaeTable(dict(enumerate(found)))
        self._prompts: list[Sequence[int]] = []
        self._numbers: dict[tuple[int, ...], int] = {}
        self._engine = AblationEngine(subject, self._table.saes, self._prompts, batch_tokens=batch_tokens)

    @property
    def saes(self) -> dict[str, Sae]:
        """sae_id -> SAE"""
        return {sae.sae_id: sae for sae in self._table.saes.values()}

    def sae_id(self, key: Key) -> str:
        """The sae_id of the SAE that a key means."""
        return self._table.saes[self._table.number(key)].sae_id

    @arguments.without_recipe()
    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 32,
        ablate: Mapping[Key, Sequence[int]] | None = None,
        clamp: Mapping[Key, Mapping[int, float]] | None = None,
        add: Mapping[Key, Any] | None = None,
        project_out: Any = None,
        positions: Positions = None,
        answering: bool | None = None,
        edits: Sequence[Any] = (),
        on_token: Callable[[int, str], None] | None = None,
    ) -> Answers:
        """Greedy answers to the prompts, in their order.

        Args:
            on_token: called after each token with the place of a prompt and its answer so far.
        """
        max_new_tokens = arguments.whole("max_new_tokens", max_new_tokens, 1)
        if on_token is not None:
            on_token = arguments.function("on_token", on_token, "a function of the prompt's place and its answer so far")
        named = named_edits(ablate, clamp, add, project_out, positions, answering)
        _, requests = self._requests(prompts, named, edits, n_answered=max_new_tokens - 1)  # the last one is not read again
        places: dict[Hashable, list[int]] = {}
        for place, one in enumerate(requests):
            places.setdefault(one.state, []).append(place)

        def told(request: Request, tokens: Sequence[int]) -> bool:
            if on_token is not None:
                for place in places[request.state]:
                    on_token(place, self._text(tokens))
            return False

        found = self._engine.answer(requests, max_new_tokens, told)
        said = self._said(found.first)
        return Answers([self._text(ids) for ids in found.token_ids], found.token_ids, *said)

    @arguments.without_recipe()
    def next_token(
        self,
        prompts: Sequence[Prompt],
        *,
        ablate: Mapping[Key, Sequence[int]] | None = None,
        clamp: Mapping[Key, Mapping[int, float]] | None = None,
        add: Mapping[Key, Any] | None = None,
        project_out: Any = None,
        positions: Positions = None,
        answering: bool | None = None,
        edits: Sequence[Any] = (),
    ) -> NextTokens:
        """What would come first in the answers, without generating them."""
        named = named_edits(ablate, clamp, add, project_out, positions, answering)
        _, requests = self._requests(prompts, named, edits)
        return self._said(self._engine.next_token(requests))

    @arguments.without_recipe()
    def activations(
        self,
        prompts: Sequence[Prompt],
        *,
        saes: Sequence[Key] | Mapping[Key, Sequence[int] | None] | None = None,
        max_new_tokens: int = 0,
        ablate: Mapping[Key, Sequence[int]] | None = None,
        clamp: Mapping[Key, Mapping[int, float]] | None = None,
        add: Mapping[Key, Any] | None = None,
        project_out: Any = None,
        positions: Positions = None,
        answering: bool | None = None,
        edits: Sequence[Any] = (),
    ) -> pa.Table:
        """What fires, without the zeros: columns prompt (its place), pos, sae_id, feature_id and activation, in this order.

        Under edits it is what SAEs read in the edited pass, each before the edits at its own site, so that a feature that is held
        shows its own activation.

        Args:
            saes: only these, or only these features of them; None: all.
            max_new_tokens: also cover the model's own answers, of at most this many tokens, at the positions after the prompts'.
        """
        max_new_tokens = arguments.whole("max_new_tokens", max_new_tokens, 0)
        named = named_edits(ablate, clamp, add, project_out, positions, answering)
        watched = self._watched(saes)
        read, requests = self._requests(prompts, named, edits, n_answered=max_new_tokens)
        if max_new_tokens:
            answers = self._engine.answer(requests, max_new_tokens).token_ids
            requests = [
                with_answer(request, self._number([*prompt.token_ids, *answer]), len(prompt.token_ids), answer)
                for prompt, request, answer in zip(read, requests, answers, strict=True)
            ]
        return self._rows(self._engine.activations(requests, watched))

    @arguments.without_recipe()
    def means(self, prompts: Sequence[Prompt], sae: Key) -> np.ndarray:
        """(f,) float64: mean activation of every feature of an SAE over the prompts' tokens, BOS left out."""
        number = self._table.number(sae)
        return self._mean(self._averaged(prompts), number)

    def _averaged(self, prompts: Sequence[Prompt]) -> list[Tokenized]:
        read = read_prompts(self.subject, prompts)
        if all(role == "bos" for one in read for role in one.roles):
            raise UserError("the prompts have no token to take a mean over, BOS left out")
        return read

    def _mean(self, read: Sequence[Tokenized], number: int) -> np.ndarray:
        requests = [request_of(self._number(one.token_ids), ()) for one in read]
        found = self._engine.activations(requests, {number: None})
        counted = np.array([read[i].roles[pos] != "bos" for i, pos in zip(found.request, found.pos, strict=True)], dtype=bool)
        width = self._table.saes[number].width
        total = np.bincount(found.feature_id[counted], found.activation[counted].astype(np.float64), width)
        return total / sum(role != "bos" for one in read for role in one.roles)

    def _watched(self, saes: Sequence[Key] | Mapping[Key, Sequence[int] | None] | None) -> dict[int, np.ndarray | None]:
        """Number of an SAE -> which features of it; None: all."""
        if saes is None:
            return dict.fromkeys(self._table.saes)
        form = "a list of SAEs, or {SAE: features}"
        pairs = saes.items() if isinstance(saes, Mapping) else [(key, None) for key in arguments.listed("saes", saes, form)]
        watched: dict[int, np.ndarray | None] = {}
        for key, ids in pairs:
            number = self._table.number(key)
            if number in watched:
                raise UserError(f"saes names {self._table.saes[number].sae_id} twice: name it once, with all its features")
            watched[number] = None if ids is None else np.unique(feature_ids(ids, self._table.saes[number]))
        return watched

    def _requests(
        self, prompts: Sequence[Prompt], named: list[Edit], edits: Sequence[Any], *, n_answered: int = 0
    ) -> tuple[list[Tokenized], list[Request]]:
        """The prompts and what is asked of them, in passes that read this many tokens of an answer.

        All is checked, with zeros for the means of MeanAblate, before these are computed.
        """
        read = read_prompts(self.subject, prompts)
        by_prompt = [(*named, *some) for some in edits_by_prompt(edits, len(read))]
        held = {id(edit): self._averaging(edit) for edit in _once(by_prompt) if isinstance(edit, MeanAblate)}
        requests = self._built(read, by_prompt, {key: np.zeros(len(ids)) for key, (_, _, ids) in held.items()}, n_answered)
        self._engine.check_positions(requests, n_answered)
        if held:
            means = {key: self._mean(over, number)[ids] for key, (over, number, ids) in held.items()}
            requests = self._built(read, by_prompt, means, n_answered)
        return read, requests

    def _averaging(self, edit: MeanAblate) -> tuple[list[Tokenized], int, np.ndarray]:
        """The prompts over which an edit's features are averaged, the number of their SAE, and their ids."""
        number = self._table.number(edit.sae)
        return self._averaged(edit.over), number, feature_ids(edit.ids, self._table.saes[number])

    def _built(
        self,
        read: Sequence[Tokenized],
        by_prompt: Sequence[tuple[Edit, ...]],
        means: Mapping[int, np.ndarray],
        n_answered: int,
    ) -> list[Request]:
        compiled = {id(edit): self._compiled(edit, means) for edit in _once(by_prompt)}
        requests = []
        for place, (prompt, some) in enumerate(zip(read, by_prompt, strict=True)):
            acting = interventions([(edit, compiled[id(edit)]) for edit in some], prompt, place)
            if not n_answered and not all(resolved(one.positions, one.answering, prompt, place).prompt for one in some):
                raise UserError(
                    f"an edit of prompt {place} acts on its answer alone, and no token of that is read: it would act nowhere"
                )
            requests.append(request_of(self._number(prompt.token_ids), acting))
        return requests

    def _compiled(self, edit: Edit, means: Mapping[int, np.ndarray]) -> FeatureSet | DirectionEdit:
        if isinstance(edit, Add | ProjectOut):
            return direction_of(edit, self._table, self.subject)
        return features_of(edit, self._table, means)

    def _number(self, token_ids: Sequence[int]) -> int:
        """The engine's number of a prompt; equal prompts share one, and with it what was computed of them."""
        key = tuple(token_ids)
        if key not in self._numbers:
            self._numbers[key] = len(self._prompts)
            self._prompts.append(list(key))
        return self._numbers[key]

    def _rows(self, found: Activations) -> pa.Table:
        # By prompt and position first, as one reads.
        order = np.lexsort((found.feature_id, found.sae, found.pos, found.request))
        sae_ids = pa.array([sae.sae_id for sae in self._table.saes.values()], pa.string())
        columns = [found.request[order], found.pos[order], found.sae[order], found.feature_id[order], found.activation[order]]
        columns[2] = pa.DictionaryArray.from_arrays(pa.array(columns[2], pa.int16()), sae_ids)
        return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, ACTIVATIONS, strict=True)], schema=ACTIVATIONS)

    def _said(self, first: NextToken) -> NextTokens:
        return NextTokens(first.p_target, [self._text([int(token)]) for token in first.token_id], first.token_id)

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(self.subject.tokenizer.decode(token_ids, skip_special_tokens=True)).strip()


def _once(by_prompt: Sequence[tuple[Edit, ...]]) -> list[Edit]:
    """Every edit once, be it of many prompts."""
    return list({id(edit): edit for some in by_prompt for edit in some}.values())


def check_engine(engine: object) -> None:
    """Raises UserError for anything but an Engine."""
    if not isinstance(engine, Engine):
        raise UserError(f"a {type(engine).__name__} is not an Engine: give saelake.Engine(subject, saes)")
