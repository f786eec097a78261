"""What a stage of the analysis is: a run that is computed from the tables of the runs before it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from saelake.analysis.workbench import Workbench
from saelake.ingest.job import Study
from saelake.warehouse.records import RunSpec
from saelake.warehouse.runs import Rows


@dataclass(frozen=True)
class Work:
    """What a stage computes with: the bench, its own identity, and the runs that it builds on."""

    bench: Workbench
    spec: RunSpec
    parents: Mapping[str, str]
    """stage -> run_id"""


class Condition(NamedTuple):
    """What is ablated, as rows of `ablations` name it; every stage has its own."""

    method: str
    part: str | None = None
    control: str | None = None


@dataclass(frozen=True)
class Stage:
    """One stage. `sections` are the parts of the recipe that its content depends on, beyond its parents; of [verdicts] that is
    the oracle alone, so that judges can be added.
    """

    name: str
    parents: tuple[str, ...]
    sections: tuple[str, ...]
    tables: tuple[str, ...]
    shards: Callable[[Study], Sequence[str]]
    """Names of its shards."""
    compute: Callable[[Work, Sequence[str]], Iterator[tuple[str, list[Rows]]]]
    code_version: int = 1
    unit: str = "shards"
    identity: Callable[[Study], Mapping[str, object]] = lambda _study: {}
    """What else its content depends on."""
    names: tuple[str, ...] = ()
    """What the names of its conditions are, or begin with."""
    compared: tuple[tuple[Condition, Condition], ...] = ()
    """What is tested: every setting of the first against the one of the second with the same K and tau, or its only one."""


def single_shard(_study: Study) -> Sequence[str]:
    """For stages too small to be cut."""
    return ["all"]


def prompt_shards(prompts: Sequence[int], size: int) -> dict[str, Sequence[int]]:
    """Slices of some prompts, by shard name."""
    return {f"prompts-{start:07d}": prompts[start : start + size] for start in range(0, len(prompts), size)}
