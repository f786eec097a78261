"""The recovery audit of the planted study: its tables, its rates, and what the report tells of them."""

import re
import shutil
from itertools import product
from pathlib import Path

import pytest

from saelake.analysis import stage_list, verbs
from saelake.analysis.report.recovery import _telling
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.analysis.effects import Analysed

AUDIT = """[audit]
prompts = 3
controls = 2
layers = [3, 5]
budgets = [0.04, 0.01]
"""


@pytest.fixture(scope="module")
def audited(study: Analysed, tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """The audit of a copy of the analysed study."""
    folder = tmp_path_factory.mktemp("audit")
    shutil.copytree(study.lake.root, folder / "lake")
    recipe = study.planted.folder / "audit.toml"
    shipped = study.planted.recipe.read_text()
    recipe.write_text(re.sub(r"\[audit\]\n[^[]*\n.*\n\n", f"{AUDIT}\n", shipped))
    lake = Lake.existing(str(folder / "lake"))
    verbs.audit_study(verbs.open_analysis(load_recipe(recipe)), lake)
    return study._replace(lake=lake)


def test_every_prompt_set_site_kind_and_budget_has_a_row(audited: Analysed) -> None:
    rows = audited.sql(
        "select label_role, source, control, count(distinct prompt_id), count(*) / count(distinct prompt_id) "
        "from recoveries join prompts using (prompt_id) group by all order by all"
    )
    assert {row[:3]: row[3:] for row in rows if row[1] in ("minimal", "top_k", "none")} == {
        (role, source, control): (3 if role == "target" else 2, 2 * 5 * 2)
        for role in ("target", "control")
        for source, control in (("minimal", None), ("minimal", "random"), ("top_k", None), ("top_k", "random"), ("none", None))
    }
    budgets = audited.sql("select distinct budget from recoveries order by 1")
    assert [round(b, 4) for (b,) in budgets] == [0.01, 0.04]


def test_what_is_held_flips_and_what_is_random_does_not(audited: Analysed) -> None:
    said = audited.sql(
        "select distinct source, control, shown_before from recoveries join prompts using (prompt_id) "
        "where label_role = 'target' and source in ('minimal', 'top_k', 'none')"
    )
    assert {(source, control): shown for source, control, shown in said} == {
        ("minimal", None): False,
        ("minimal", "random"): True,
        ("none", None): True,
        ("top_k", None): False,
        ("top_k", "random"): True,
    }
    controls = "select bool_or(shown_before) from recoveries join prompts using (prompt_id) where label_role = 'control'"
    assert audited.sql(controls) == [(False,)]
    assert audited.sql("select count(*) from recoveries where shown_before and (norm > 0 or n_evaluations > 0)") == [(0,)]


def test_rates_are_of_prompts_that_a_set_has_flipped(audited: Analysed) -> None:
    rates = {row[:6]: row[6:] for row in audited.ask("recoveries", by_layer=False)}
    layered = audited.ask("recoveries", by_layer=True)
    assert {row[3] for row in layered} == {3, 5}
    for (role, source, control, layer, kind, budget), (n, hit, rate, low, high) in rates.items():
        assert layer is None
        shown = audited.sql(
            f"select prompt_id, bool_or(shown) from recoveries join prompts using (prompt_id) where label_role = '{role}' and "
            f"source = '{source}' and coalesce(control, '') = '{control or ''}' and kind = '{kind}' "
            f"and abs(budget - {budget}) < 1e-6 and not shown_before group by 1"
        )
        assert (n, hit) == (len(shown), sum(one for _, one in shown))
        assert rate == pytest.approx(hit / n)
        assert low <= rate <= high
    assert not any(kind == "random" and hit for (role, *_, kind, _), (_, hit, *_) in rates.items() if role == "target")
    sites = audited.ask("recovery_sites", "layer, kind, n_recovered, norm, drift")
    assert {(layer, kind) for layer, kind, *_ in sites} == set(
        product((3, 5), ("error", "features", "free", "orthogonal", "random"))
    )


def test_a_study_that_is_not_analysed_has_no_audit(study: Analysed, tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    with pytest.raises(UserError, match="the audit reads what direction, baseline"):
        verbs.audit_study(verbs.open_analysis(study.recipe), lake)


def test_workers_find_the_stages_of_an_audit_by_their_names(study: Analysed) -> None:
    assert [stage_list.stage_named(study.recipe, one.name) for one in stage_list.AUDIT] == list(stage_list.AUDIT)


@pytest.mark.parametrize(
    ("controls", "budget"),
    [({0.05: 0.0, 0.1: 0.0, 0.2: 0.8}, 0.1), ({0.05: 0.5, 0.1: 0.7}, 0.05), ({0.05: 0.0, 0.1: 0.0}, 0.1), ({}, 0.2)],
)
def test_the_report_tells_the_budget_that_tells_most(controls: dict[float, float], budget: float) -> None:
    """At a budget that makes control prompts show the behaviour, that a target prompt does says nothing."""
    found = {("target", "free", one): 1.0 for one in (*controls, 0.05, budget)}
    assert _telling(found | {("control", "free", one): rate for one, rate in controls.items()}) == budget
