"""The commands that follow up an analysis that is done: atlas, audit, judge."""

from typing import TYPE_CHECKING

import click

from saelake.commands.computed import print_findings, print_runs, workers_of
from saelake.commands.options import Computing, computing_options, open_lake

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from saelake.ingest.recipe import Recipe
    from saelake.warehouse.records import RunRecord

FOUND = {
    "causes": "Causes",
    "interactions": "Interactions in P(target)",
    "interactions_log_odds": "Interactions in the log-odds of P(target)",
}
"""Column finds of method_scores -> what methods are to find, in words."""


@click.command()
@click.argument("recipe")
@click.option("--full", is_flag=True, help="Every pair of every prompt, as with `prompts = 0` in [atlas].")
@computing_options()
def atlas(recipe: str, full: bool, computing: Computing) -> None:
    """Ablate every active feature of RECIPE's refused prompts, alone and in pairs, and score each method against what that does.

    RECIPE is a .toml file or the name of a shipped one, which is analysed in the lake already; its section [atlas] says how much
    is ablated. Finds what is there, resumes what was stopped.
    """
    study = computing.study(recipe)
    if full:
        study = study.model_copy(update={"atlas": study.atlas.model_copy(update={"prompts": 0})})
    from saelake.analysis import verbs
    from saelake.queries.output import show

    _follow_up(study, computing, verbs.atlas_study)
    with open_lake(computing.lake, study.name) as shown:
        for finds, words in FOUND.items():
            k = (study.atlas.ks if finds == "causes" else study.atlas.pair_ks)[-1]
            click.echo(f"\n{words}: the share that each method finds among the first {k} it names per prompt")
            show(
                shown.query("atlas_scores", k=k)
                .filter(f"finds = '{finds}' and k is not null")
                .select("* exclude (finds, measure, k)")
            )


@click.command()
@click.argument("recipe")
@computing_options()
def audit(recipe: str, computing: Computing) -> None:
    """Search for small changes of the residual stream that undo what ablating RECIPE's sets did: was it the cause, or one route?

    RECIPE is a .toml file or the name of a shipped one, which is analysed in the lake already; its section [audit] says what is
    searched, where and how far. Finds what is there, resumes what was stopped.
    """
    study = computing.study(recipe)
    from saelake.analysis import verbs
    from saelake.queries.output import show

    _follow_up(study, computing, verbs.audit_study)
    with open_lake(computing.lake, study.name) as shown:
        click.echo("\nPrompts whose behaviour a change brings back while the set is held ablated, at any site")
        show(shown.query("recoveries").filter("kind in ('free', 'random')").select("* exclude (layer)"))


@click.command()
@click.argument("recipe")
@click.option(
    "--judge", "name", required=True, metavar="NAME", help="first_token, phrases, harmbench, or a [judges.NAME] of the recipe."
)
@computing_options()
def judge(recipe: str, name: str, computing: Computing) -> None:
    """Let another judge read the answers that the analysis of RECIPE stored, ablating nothing, and show the shares that flip.

    RECIPE is a .toml file or the name of a shipped one, which is analysed in the lake already.
    """
    study = computing.study(recipe)
    from saelake.analysis import verbs

    _follow_up(study, computing, lambda opened, into, **more: [verbs.judge_study(opened, into, name, **more)])
    with open_lake(computing.lake, study.name) as shown:
        print_findings(shown, name, study.words)


def _follow_up(study: "Recipe", computing: Computing, compute: "Callable[..., Sequence[RunRecord]]") -> None:
    """Computes further runs of a study whose analysis the lake holds already, and lists them.

    Args:
        compute: takes the opened study and the lake, `force`, `progress` and `workers`.
    """
    from saelake.analysis.verbs import open_analysis
    from saelake.warehouse.lake import Lake
    from saelake.warehouse.progress import Bar

    opened, into = open_analysis(study), Lake.existing(computing.lake)
    with Bar() as progress, workers_of(computing.n_workers, opened, into) as workers:
        records = compute(opened, into, force=computing.force, progress=progress, workers=workers)
    print_runs(computing.lake, [record.run_id for record in records])


COMMANDS = (atlas, audit, judge)
