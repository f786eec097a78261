"""What a section works with: the study's tables, and questions whose SQL and rows the page shows beside every picture."""

import fnmatch
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import duckdb

from saelake import queries
from saelake.ingest.recipe.sections import Behaviour
from saelake.queries.output import json_objects, printable
from saelake.warehouse.catalog import current_records
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord

LONGEST_WORD = 60
MOST_ROWS = 2_000
"""Rows of an answer that the page carries; the rest is one command away."""


@dataclass(frozen=True)
class Answer:
    """One question, asked: the statement and its rows."""

    question: str
    parameters: Mapping[str, Any]
    sql: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    """All of them, as JSON values, ids as text: what is said of an answer is said of these."""
    why: Sequence[str] = ()
    """Where there are none: why the tables that it reads are empty, as far as that is known."""

    @property
    def carried(self) -> list[dict[str, Any]]:
        """The first rows: what the page carries of them."""
        return self.rows[:MOST_ROWS]

    @property
    def command(self) -> str:
        """What answers it again in a shell."""
        given = [part for name, value in self.parameters.items() for part in (f"--{name}", _as_text(value))]
        return shlex.join(["saelake", "query", self.question, *given])

    def one(self, **values: Any) -> dict[str, Any] | None:
        """The first row with these values, if there is one."""
        return next((row for row in self.rows if all(row[name] == value for name, value in values.items())), None)


def as_said(name: str) -> str:
    """A name that a person gave, for a sentence in which {words} are filled in."""
    return name.replace("{", "{{").replace("}", "}}")


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def ingested(records: Mapping[str, RunRecord]) -> RunRecord | None:
    """A run that holds prompts of a study, and so says what the study is about; version 1 had one with all."""
    return records.get("prompts") or records.get("ingest")


def words_of(records: Mapping[str, RunRecord]) -> dict[str, str]:
    """What a study's behaviour is called, as its recipe said when the prompts were ingested."""
    record = ingested(records)
    known = record.about.get("behaviour", {}) if record else {}
    older = {"target": known.get("harmful", "harmful"), "control": known.get("benign", "benign")}
    words = Behaviour().model_dump() | older | known
    return {name: printable(str(words[name]))[:LONGEST_WORD] for name in Behaviour.model_fields}


@dataclass(frozen=True)
class Studied:
    """The study of a report."""

    con: duckdb.DuckDBPyConnection
    recipe: str
    records: Mapping[str, RunRecord]
    """Its current run of each stage; the latest, where it has several."""
    with_completions: bool = False
    """Whether answers to target prompts may be shown."""
    has_backups_page: bool = False
    """Whether the report of the study with backups lies beside this one."""
    asked: list[Answer] = field(default_factory=list)

    @classmethod
    def of(cls, con: duckdb.DuckDBPyConnection, lake: Lake, recipe: str, **shown: Any) -> "Studied":
        """A study of a lake, on a connection that shows it."""
        return cls(con, recipe, {record.stage: record for record in current_records(lake, recipe)}, **shown)

    @cached_property
    def words(self) -> Mapping[str, str]:
        """What its behaviour is called: see `ingest.recipe.sections.Behaviour`."""
        return words_of(self.records)

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """The labels that the study takes for target and control; where its prompts were left out, those of most studies."""
        shown = not any("prompts" in record.withheld for record in self.records.values())
        return {"target": "harmful", "control": "benign"} | (queries.labels(self.con) if shown else {})

    def called(self, label: str) -> str:
        """What prompts of a label are called: in the study's words, else the label itself."""
        return next((self.words[role] for role, own in self.labels.items() if own == label), printable(label)[:LONGEST_WORD])

    def say(self, sentence: str) -> str:
        """A sentence of ours in the study's words: {name}, {shown}, {absent}, {target} and {control} in it are filled in."""
        return sentence.format(**self.words)

    def absent(self, stages: Iterable[str]) -> list[str]:
        """Those of some stages, or patterns of their names, that the study has no run of."""
        return [stage for stage in stages if not fnmatch.filter(self.records, stage)]

    def ask(self, question: str, **parameters: Any) -> Answer:
        """Asks a question of queries/; parameters that are None keep their default."""
        given = {name: value for name, value in parameters.items() if value is not None}
        if (asked := next((a for a in self.asked if (a.question, a.parameters) == (question, given)), None)) is not None:
            return asked
        relation = queries.run(self.con, question, **given)
        rows = list(json_objects(relation))
        sql = queries.load(question).statement(self.con, given)
        why = () if rows else queries.why_no_rows(self.con, question, given)
        answer = Answer(question, given, sql, tuple(relation.columns), rows, why)
        self.asked.append(answer)
        return answer

    def saes(self) -> tuple[int, str, float]:
        """How many SAEs, of which widths, and their mean L0 (features a token)."""
        ((n, widths, l0),) = self.con.execute(queries.step("saes_in_short")).fetchall()
        return n, widths, l0

    @property
    def ingested(self) -> RunRecord | None:
        """A run that holds some of its prompts."""
        return ingested(self.records)

    @property
    def model(self) -> str | None:
        """The hub id of the model under study, if it came from there."""
        config = self.ingested.config if self.ingested else {}
        name = config.get("model", {}).get("id")
        return name if isinstance(name, str) else None

    @property
    def judge(self) -> str:
        """The recipe's oracle: whose verdicts were stored with the answers."""
        return queries.oracle(self.con) or "first_token"
