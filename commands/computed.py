"""What the commands that compute share: their workers, the runs that they list, and what a study came to."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import click

from saelake.commands.options import open_lake

if TYPE_CHECKING:
    from saelake import OpenLake
    from saelake.analysis.workers import RayWorkers
    from saelake.ingest.study import Study
    from saelake.warehouse.lake import Lake


def workers_of(n_workers: int | None, study: "Study", lake: "Lake") -> "AbstractContextManager[RayWorkers | None]":
    """The workers of --workers; 0 stands for as many as the cluster has room for."""
    if n_workers is None:
        return nullcontext()
    from saelake.analysis.workers import RayWorkers

    return RayWorkers(study, lake, n_workers or None)


def print_runs(lake: str, run_ids: list[str]) -> None:
    from saelake.queries.output import show
    from saelake.warehouse.literals import literals

    with open_lake(lake, None) as opened:
        found = opened.query("runs").filter(f"list_contains({literals(run_ids)}, run_id)")
        show(found.select("run_id", "stage", "seconds", "rows"))
        paid = opened.sql(f"select run_id, about->'judges' from all_runs.runs where list_contains({literals(run_ids)}, run_id)")
        for run_id, judges in paid.fetchall():
            for judge, cost in json.loads(judges or "{}").items():
                counts = f"{cost['prompt_tokens']:,} prompt and {cost['completion_tokens']:,} completion tokens"
                click.echo(f"{run_id}: {judge} replied {cost['replies']:,} times, for {counts}")


def print_findings(opened: "OpenLake", judge: str, words: Mapping[str, str]) -> None:
    """What the study came to, by a judge: K chosen on half of the prompts, every condition's rate there, Table 1, and backups.

    First, which stages had nothing to work on, and why.
    """
    from saelake import queries
    from saelake.analysis.notices import target_notice
    from saelake.queries.output import printable, show

    for stage, why in queries.reasons(opened.connection).items():
        click.echo(f"{stage} had no input: {printable(why)}")
    own, chosen = (
        queries.run(opened.connection, "k_choice", condition=name, judge=judge) for name in ("top_k_own", "top_k_chosen")
    )
    choice = own.union(chosen)
    ks = sorted({k for (k,) in choice.select("k").fetchall()})
    at = f", at K = {', '.join(map(str, ks))}" if ks else ""
    rates = opened.query("asr", judge=judge, k=ks).filter("tau is null")
    methods = opened.query("search_methods", judge=judge)
    for title, found in (
        (
            f"Top K features a layer ablated: K chosen on half of the {words['target']} prompts that are {words['shown']} (0), "
            f"reported on the other half (1), by {judge}",
            choice.select("* exclude (judge)"),
        ),
        (
            f"Prompts that are {words['absent']}, by condition{at}, by {judge}",
            rates.select("* exclude (judge, tau)"),
        ),
        (f"Critical features by method (Table 1), by {judge}", methods.select("* exclude (judge)")),
        (
            f"What is ablated alone, with what wakes then, and with as many others, by {judge}",
            opened.query("backups", judge=judge),
        ),
    ):
        click.echo(f"\n{title}")
        show(found)
    if notice := target_notice(opened.connection, words):
        click.echo(f"\n! {notice}")
