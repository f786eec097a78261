"""A plan as tables for a person."""

import io

from rich.console import Console
from rich.table import Table

from saelake.ingest.plan.estimate import StudyPlan
from saelake.ingest.plan.sizes import TO_BE_TRAINED

MUCH = "if much is found"
NOT_COUNTED = (
    "not counted: the loading of models; audit, atlas and judge, commands of their own. Workers on this machine share its "
    "processors, and each takes a process's memory."
)
UNITS = ("B", "kB", "MB", "GB", "TB")


def render(plan: StudyPlan, width: int = 120) -> str:
    """The plan as text, for a terminal or a file; its numbers are rounded, `StudyPlan.to_json` has them all."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for table in (_access(plan), _prompts(plan), _lake(plan), _memory(plan), _stages(plan)):
        # The title apart from its table: rich would break it at the table's width.
        console.print(table.title, markup=False, highlight=False)
        table.title = None
        console.print(table)
    console.print(f"\n{NOT_COUNTED}", markup=False, highlight=False)
    if plan.targets:
        targets = ", ".join(map(str, plan.targets))
        console.print(f"\ntarget tokens: {targets}", markup=False, highlight=False, soft_wrap=True)
    for problem in plan.problems:
        console.print(f"! {problem}", markup=False, highlight=False)
    assert isinstance(console.file, io.StringIO), "written to memory"
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def size(n_bytes: float | None) -> str:
    """Bytes in decimal units with three figures; a dash where they are not known."""
    if n_bytes is None:
        return "-"
    for unit in UNITS[:-1]:
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} {UNITS[-1]}"


def time(hours: float) -> str:
    """Hours in the unit that a person would use."""
    if hours < 1 / 60:
        return f"{hours * 3600:.2g} s"
    if hours < 1:
        return f"{hours * 60:.2g} min"
    return f"{hours:.3g} h" if hours < 100 else f"{hours:,.0f} h"


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        # Names are there to be copied: the other columns give way in a narrow terminal.
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=column == "from")
    return table


def _access(plan: StudyPlan) -> Table:
    states = {
        "here": "is here",
        "open": "open",
        "token": "a token is set; accept the licence if it is not yet",
        "accepted": "accepted",
        "refused": "needs a login and the licence accepted",
    }
    licence = f" ({plan.access.licence})" if plan.access.licence else ""
    table = _table(f"\n{plan.recipe} · access and downloads", "what", "from", "size", "known by", "state", right=("size",))
    for one in plan.downloads:
        state = "is here" if one.is_here else "to be trained" if one.known_by == TO_BE_TRAINED else "to download"
        if one.what == "model":
            state = states[plan.access.state] + licence
        table.add_row(one.what, one.source, size(one.n_bytes), one.known_by, state)
    return table


def _prompts(plan: StudyPlan) -> Table:
    title = f"\nprompts · tokens by {plan.tokens_known_by}"
    table = _table(title, "set", "split", "label", "prompts", "tokens", right=("prompts", "tokens"))
    for group in plan.prompts:
        table.add_row(group.set, group.split, group.label, f"{group.n_prompts:,}", f"{group.n_tokens:,}")
    return table


def _lake(plan: StudyPlan) -> Table:
    table = _table(
        f"\nlake after ingest · by {plan.lake.known_by}", "tokens", "activations", "on disk", right=("tokens", "activations")
    )
    table.add_row(f"{plan.lake.n_tokens:,}", f"{plan.lake.n_activations:,}", size(plan.lake.n_bytes))
    return table


def _memory(plan: StudyPlan) -> Table:
    table = _table(f"\nmemory · {plan.device} has {size(plan.device_bytes)}", "what", "size", right=("size",))
    for need in plan.memory:
        table.add_row(need.what, size(need.n_bytes))
    return table


def _stages(plan: StudyPlan) -> Table:
    title = f"\nwork · estimated at {plan.rate / 1e9:,.0f} GFLOP/s, measured just now on {plan.device}"
    table = _table(title, "stage", "passes", "answers", "time", MUCH, "note", right=("passes", "answers", "time", MUCH))
    for one in plan.stages:
        most = "" if one.most_hours is None else time(one.most_hours)
        table.add_row(one.work.stage, f"{one.work.passes:,}", f"{one.work.answers:,}", time(one.hours), most, one.work.note)
    hours = sum(one.hours for one in plan.stages)
    most_hours = sum(one.hours if one.most_hours is None else one.most_hours for one in plan.stages)
    table.add_row("all", "", "", time(hours), time(most_hours), "as in studies of like size")
    return table
