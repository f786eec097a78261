"""What the stages of one study work with: the loaded subject, its engine, and SQL over the runs that they build on."""

import gc
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import torch

from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import FeatureSet
from saelake.analysis.judges.protocol import Settling
from saelake.analysis.judges.reasoning import Reasoning
from saelake.analysis.judges.verdicts import Reader, after_reasoning, judge_named, oracle_of
from saelake.ingest.loaded import Loaded
from saelake.ingest.recipe import Recipe
from saelake.ingest.recipe.sections import ROLES
from saelake.ingest.runs import SetRuns, ingest_runs, prompt_ids
from saelake.ingest.saes.sae import Sae
from saelake.ingest.study import Study
from saelake.ingest.subject import Subject
from saelake.ingest.tokenized import Tokenized
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import INDEX_MASK


class StudyContext:
    """Loads what is asked for, once, when it is first asked for.

    Prompts are known by their number, which is their place in the study.
    """

    def __init__(self, study: Study, lake: Lake) -> None:
        self.study = study
        self.lake = lake
        self.loaded = Loaded(study)
        """What is in memory, shared with the ingest job of the same process."""
        self.run_id = ""
        """The run that is computed: it pays for what judges cost."""
        self._judges: dict[str, Reader] = {}

    @property
    def recipe(self) -> Recipe:
        return self.study.recipe

    @cached_property
    def subject(self) -> Subject:
        return self.loaded.subject

    @cached_property
    def saes(self) -> Mapping[int, Sae]:
        """The study's SAEs by their numbers; weights are loaded when they are needed."""
        return self.loaded.sae_loader

    @cached_property
    def token_ids(self) -> list[list[int]]:
        """The templated tokens of every prompt."""
        return [self.encoded(number).token_ids for number in range(len(self.study.prompts))]

    def encoded(self, prompt: int) -> Tokenized:
        """A prompt, by its number, as the model reads it."""
        return self.subject.encode(self.study.prompts[prompt].asked)

    @cached_property
    def engine(self) -> AblationEngine:
        return AblationEngine(self.subject, self.saes, self.token_ids)

    @cached_property
    def oracles(self) -> dict[str, str]:
        """Role of a label -> the judge whose verdicts decide what flips there."""
        return {role: oracle_of(role, self.recipe) for role in ROLES}

    def oracle_of(self, prompt: int) -> str:
        """The judge whose verdict counts on a prompt, by the prompt's number."""
        return self.oracles[self.study.role(prompt)]

    def judge(self, name: str) -> Reader:
        """A judge by its name, loaded once; one that is a model stays in memory beside the subject until `make_room_for`."""
        if name not in self._judges:
            judge = judge_named(name, self.recipe, self.lake.root, lambda: self.run_id)
            self._judges[name] = after_reasoning(judge, self.reasoning, judge.labels)
        return self._judges[name]

    def settled(self, prompt: int, token_ids: Sequence[int]) -> bool:
        """Whether the oracle reads every answer to the prompt that begins with these tokens as a refusal."""
        judge = self._settling.get(self.oracle_of(prompt))
        if judge is None:
            return False
        text = self.text(token_ids)
        return judge.settled(text) and not self.reasoning.begins_in(text)

    @cached_property
    def _settling(self) -> dict[str, Settling]:
        """The oracles that know a refusal by its beginning: none where any answer's beginning may turn out to be reasoning."""
        added = self.subject.tokenizer.added_tokens_decoder.values()
        if self.reasoning.is_open or any(self.reasoning.keeps(str(token)) for token in added):
            return {}
        judges = {name: judge_named(name, self.recipe, self.lake.root) for name in set(self.oracles.values())}
        return {name: judge for name, judge in judges.items() if isinstance(judge, Settling)}

    @cached_property
    def sets(self) -> list[SetRuns]:
        """The runs that hold the study's prompts and activations, set by set."""
        return ingest_runs(self.study, self.lake)

    @cached_property
    def prompt_ids(self) -> np.ndarray:
        """(n_prompts,) int64: the id of every prompt of the study."""
        return prompt_ids(self.sets)

    @cached_property
    def places(self) -> np.ndarray:
        """(n_prompts,) int64: the place of every prompt in its run. Draws go by it: it stays what it is when a study grows."""
        return self.prompt_ids & INDEX_MASK

    @cached_property
    def number_of(self) -> dict[int, int]:
        """prompt_id -> number"""
        return {int(prompt_id): number for number, prompt_id in enumerate(self.prompt_ids)}

    @cached_property
    def sae_ids(self) -> dict[int, str]:
        """Number of an SAE -> sae_id"""
        return {number: ref.sae_id for number, ref in self.study.numbered_saes.items()}

    @cached_property
    def sae_number(self) -> dict[str, int]:
        """sae_id -> number of an SAE"""
        return {sae_id: number for number, sae_id in self.sae_ids.items()}

    def sae_numbers(self, sae_ids: Iterable[str]) -> np.ndarray:
        """The numbers of the SAEs in a column of their ids."""
        return np.fromiter(map(self.sae_number.__getitem__, sae_ids), dtype=np.int64)

    def sae_id_column(self, numbers: np.ndarray) -> pa.DictionaryArray:
        """The ids of the SAEs in a column of their numbers."""
        return pa.DictionaryArray.from_arrays(
            pa.array(numbers, pa.int32()), [self.sae_ids.get(n, "") for n in range(max(self.sae_ids) + 1)]
        )

    def feature_set(self, rows: Mapping[str, np.ndarray], chosen: Any = slice(None), value: float = 0.0) -> FeatureSet:
        """The features that some rows name by the columns sae_id and feature_id."""
        return FeatureSet.of(self.sae_numbers(rows["sae_id"][chosen]), rows["feature_id"][chosen], value)

    def make_room_for(self, judge: str) -> None:
        """Frees the memory of the subject, its SAEs and all other judges; they are loaded again when they are asked for again."""
        for name in ("engine", "saes", "subject"):
            self.__dict__.pop(name, None)
        self.loaded.forget()
        self._judges = {name: loaded for name, loaded in self._judges.items() if name == judge}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def sql(self, runs: Sequence[str]) -> duckdb.DuckDBPyConnection:
        """A connection on which plain table names show exactly these runs.

        It has one thread: with several, sums of floating-point numbers differ in their last bit from time to time, and a run's
        content must not.
        """
        return connect(self.lake, runs=runs, threads=1)

    @cached_property
    def reasoning(self) -> Reasoning:
        """How answers of the study show reasoning."""
        return Reasoning.of(self.recipe)

    @cached_property
    def _dropped(self) -> frozenset[int]:
        """Special tokens that are not part of an answer's text: all but those that mark reasoning."""
        added = self.subject.tokenizer.added_tokens_decoder.items()
        return frozenset(i for i, token in added if token.special and not self.reasoning.keeps(str(token)))

    def text(self, token_ids: Sequence[int]) -> str:
        """Generated tokens as text, with the marks of reasoning."""
        kept = [token_id for token_id in token_ids if token_id not in self._dropped]
        text: str = self.subject.tokenizer.decode(kept, skip_special_tokens=False)
        return text.strip()
