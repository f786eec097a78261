"""saelake steer: a dose response, as a run, a table and a chart."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from saelake.commands.options import Computing, computing_options, open_lake, positions_option

if TYPE_CHECKING:
    from saelake import OpenLake

CHARTS = (".svg", ".png")


@click.command()
@click.argument("recipe")
@click.option("--name", required=True, metavar="NAME", help="What the answers are called in ablations.condition.")
@click.option("--strengths", required=True, metavar="LIST", help="Numbers joined by commas, as -10,0,10; below 0: the other way.")
@click.option("--features", metavar="LIST", help="Add these features' decoder rows: a list, a file or a select as of ablate.")
@click.option("--clamp", is_flag=True, help="Hold the features at each strength in place of adding their decoder rows.")
@click.option("--direction", metavar="LAYER", help="Add the direction of a layer, of length 1; chosen: that of the study.")
@click.option("--vector", type=click.Path(path_type=Path), metavar="FILE", help="Add the vector in a .npy, .safetensors or .pt.")
@click.option("--site", metavar="HOOK", help="Where a vector is added: a layer, or a hook as blocks.5.hook_mlp_out.")
@positions_option
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw it too, as .svg or .png.")
@computing_options(workers=False)
def steer(
    recipe: str,
    name: str,
    strengths: str,
    features: str | None,
    clamp: bool,
    direction: str | None,
    vector: Path | None,
    site: str | None,
    positions: str | None,
    chart: Path | None,
    computing: Computing,
) -> None:
    """Add features or a direction at growing strengths on the prompts of RECIPE's analysis, and show the dose response.

    RECIPE is a .toml file or the name of a shipped one. Ingests if needed. What is added, strength times its length, is a decoder
    row, a direction that the analysis found, or a vector of yours; --clamp holds features at values. `saelake query sweeps` and
    the report show it again. The same NAME with other settings replaces it.
    """
    study = computing.study(recipe)
    if chart is not None and chart.suffix not in CHARTS:
        raise click.UsageError(f"--chart draws {' and '.join(CHARTS)}, not {chart.name}")
    from saelake.analysis import steer as steering
    from saelake.analysis.search.sweeps import Sweep
    from saelake.commands.computed import print_runs
    from saelake.queries.output import show
    from saelake.warehouse.lake import Lake
    from saelake.warehouse.progress import Bar

    sweep = Sweep(name, steering.parse_strengths(strengths), clamp, direction, vector, site, positions)
    opened_study = steering.open_steering(study, Lake.at(computing.lake), sweep, features)  # before there is a lake
    with Bar() as progress:
        into = Lake.create(computing.lake)
        record = steering.steer_study(opened_study, into, sweep, features, force=computing.force, progress=progress)
    print_runs(computing.lake, [record.run_id])
    with open_lake(computing.lake, study.name) as opened:
        found = opened.query("sweeps", sweep=name, judge=study.verdicts.oracle)
        show(found.select("label, strength, n_prompts, p_refusal_token, refused, degenerate, changed"))
        if chart is not None:
            _draw(opened, name, study.verdicts.oracle, chart)
            click.echo(f"drawn to {chart}", file=sys.stderr)


def _draw(opened: "OpenLake", name: str, judge: str, file: Path) -> None:
    from saelake.analysis.report import charts
    from saelake.analysis.report.answers import Studied
    from saelake.analysis.report.effects import sweep_chart

    study = Studied.of(opened.connection, opened.lake, str(opened.recipe))
    spec, drawn = sweep_chart(study.ask("sweeps", sweep=name, judge=judge).rows, study)
    file.write_bytes(charts.picture(spec, drawn, file.suffix))


COMMANDS = (steer,)
