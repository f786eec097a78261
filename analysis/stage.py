"""What a stage of the analysis is: a run that is computed from the tables of the runs before it."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import duckdb

from saelake.analysis.study_context import StudyContext
from saelake.ingest.recipe import Recipe
from saelake.ingest.runs import SetRuns
from saelake.ingest.study import Study
from saelake.warehouse.records import RunSpec
from saelake.warehouse.runs import Rows


@dataclass(frozen=True)
class Work:
    """What a stage computes with: the study's context, its own identity, and the runs that it builds on."""

    context: StudyContext
    spec: RunSpec
    parents: Mapping[str, tuple[str, ...]]
    """stage -> its runs"""

    def sql(self, *stages: str) -> duckdb.DuckDBPyConnection:
        """A connection on which plain table names show the runs of these parents; of all, if none is named."""
        return self.context.sql(list(dict.fromkeys(run_id for stage in stages or self.parents for run_id in self.parents[stage])))


class Condition(NamedTuple):
    """What is edited, as rows of `ablations` name it; every stage has its own."""

    method: str
    part: str | None = None
    control: str | None = None


@dataclass(frozen=True)
class Stage:
    """One stage. `sections` are the parts of the recipe that its content depends on, beyond its parents; of [verdicts] the
    oracle and the control_oracle count, and with them the target tokens, but no other judge: to add one changes no run.
    """

    name: str
    parents: tuple[str, ...]
    """The stages that it reads: of `prompts` and `activations` the runs of its prompt sets that have a prompt of its splits."""
    sections: tuple[str, ...]
    tables: tuple[str, ...]
    shards: Callable[[Study], Sequence[str]]
    """Names of its shards."""
    compute: Callable[[Work, Sequence[str]], Iterator[tuple[str, list[Rows]]]]
    """From the names of the missing shards: each with its rows, as soon as it is done."""
    code_version: int = 1
    """A higher one computes the stage's runs again: raised when the code gives other rows."""
    unit: str = "shards"
    """What its shards are called while they are counted."""
    identity: Callable[[Study], Mapping[str, object]] = lambda _study: {}
    """What else its content depends on."""
    conditions: tuple[str, ...] = ()
    """The names of its conditions, or what they begin with: `top_k` stands for `top_k_own` too."""
    compared: tuple[tuple[Condition, Condition], ...] = ()
    """What is tested: every setting of the first against the one of the second with the same K and tau, or its only one."""
    splits: Callable[[Recipe], Collection[str]] | None = None
    """The splits whose prompts it reads; all of them by default."""
    sets: Callable[[Recipe], Collection[str]] = lambda _recipe: ()
    """The prompt sets that it reads; all of them if none are named."""

    def reads(self, study: Study, sets: Sequence[SetRuns]) -> list[SetRuns]:
        """The prompt sets that it reads."""
        named, splits = self.sets(study.recipe), self.splits and set(self.splits(study.recipe))
        return [
            one
            for one in sets
            if (not named or one.name in named)
            and (splits is None or not splits.isdisjoint(study.prompts[i].split for i in one.prompt_numbers))
        ]


def single_shard(_study: Study) -> Sequence[str]:
    """For stages too small to be cut."""
    return ["all"]


def searched_split(recipe: Recipe) -> Collection[str]:
    """The split of the prompts on which features are ablated."""
    return [recipe.candidates.split]


def direction_splits(recipe: Recipe) -> Collection[str]:
    """The splits that the refusal direction is made from, and chosen on."""
    return [recipe.direction.split, recipe.direction.select_split]
