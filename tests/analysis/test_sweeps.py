"""`saelake steer`: a known cause, added or held ever more strongly, brings the behaviour out, or takes it away."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import saelake
from saelake import cli
from saelake.analysis import verbs
from saelake.analysis.search import directions
from saelake.analysis.search.edit_sets import EditSet
from saelake.analysis.search.sweeps import Source, Sweep, check_sweep, doses, features_source, stage
from saelake.analysis.stage_list import specs
from saelake.analysis.steer import steer
from saelake.analysis.study_context import StudyContext
from saelake.analysis.verbs import ensure_stage
from saelake.ingest.job import ingest
from saelake.ingest.recipe import load_recipe
from saelake.queries import QueryError
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.planted import load, write_planted

LAYER = 5


class Steered:
    """The planted study, ingested, with its directions."""

    def __init__(self, folder: Path) -> None:
        self.planted = write_planted(folder / "study")
        self.recipe = load_recipe(self.planted.recipe)
        self.lake = Lake.create(folder / "lake")
        self.feature = f"{LAYER}:{self.planted.primary}"
        ingest(self.recipe, self.lake)
        study = verbs.open_analysis(self.recipe)
        ensure_stage(directions.STAGE, specs(study, [directions.STAGE], self.lake), StudyContext(study, self.lake))
        self.folder = folder

    def steer(
        self, name: str, strengths: tuple[float, ...], features: str | None = None, **more: object
    ) -> list[tuple[float, ...]]:
        """(strength, P(target), share refused) by strength, of benign prompts and then of harmful ones."""
        steer(self.recipe, self.lake, Sweep(name, strengths, **more), features)  # type: ignore[arg-type]
        return self.shares(name)

    def shares(self, name: str) -> list[tuple[float, ...]]:
        with saelake.open(self.lake.root) as opened:
            found = opened.query("sweeps", sweep=name, judge="first_token")
            return found.order("label, strength nulls first").project("strength, p_refusal_token, refused").fetchall()

    def answers(self, name: str) -> list[tuple[Any, ...]]:
        with saelake.open(self.lake.root) as opened:
            return opened.sql(
                "select text, strength, round(p_refusal_token, 5), completion from ablations join doses using (ablation_id) "
                "join prompts using (prompt_id) where condition = $1 order by all",
                [name],
            ).fetchall()


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Steered:
    return Steered(tmp_path_factory.mktemp("sweeps"))


def test_adding_the_known_cause_induces_the_behaviour_ever_more_and_taking_it_away_restores_answers(steered: Steered) -> None:
    shares = steered.steer("row", (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0), steered.feature)
    benign, harmful = shares[:7], shares[7:]
    assert [strength for strength, *_ in benign] == [-4, -2, -1, 0, 1, 2, 4]
    for rows in (benign, harmful):
        assert all(later[1] >= earlier[1] - 1e-6 for earlier, later in pairwise(rows)), "no dose response"
    assert benign[3][1] < 0.1, "benign prompts are answered as the model is"
    assert benign[-1][1:] == (pytest.approx(1, abs=1e-2), 1), "and refused with the cause added"
    assert harmful[3][1] > 0.9
    assert harmful[0][1] < 0.1


def test_clamping_the_known_cause_does_so_too_and_0_ablates(steered: Steered) -> None:
    shares = steered.steer("held", (0.0, 1.0, 2.0, 4.0), steered.feature, clamp=True)
    benign, harmful = shares[:5], shares[5:]
    assert [strength for strength, *_ in benign] == [None, 0, 1, 2, 4]
    for rows in (benign, harmful):
        assert all(later[1] >= earlier[1] - 1e-6 for earlier, later in pairwise(rows[1:])), "no dose response"
    assert (benign[1][2], benign[-1][2]) == (0, 1)
    assert (harmful[0][2], harmful[1][2], harmful[-1][2]) == (1, 0, 1)
    verbs.ablate(steered.recipe, steered.lake, "ablated", steered.feature)
    with saelake.open(steered.lake.root) as opened:
        same = opened.sql(
            "select count(*), count(*) filter (where a.completion = o.completion) from ablations as a "
            "join doses using (ablation_id) join ablations as o on o.prompt_id = a.prompt_id and o.condition = 'ablated' "
            "where a.condition = 'held' and strength = 0"
        ).fetchall()
    assert same == [(12, 12)]


def test_a_vector_and_a_direction_are_what_the_library_adds(steered: Steered) -> None:
    loaded = load(steered.planted)
    row = loaded.saes[LAYER].W_dec[steered.planted.primary].detach()
    file = steered.folder / "row.npy"
    np.save(file, row.numpy())
    steered.steer("row_again", (-2.0, 3.0), steered.feature, positions="-1")
    steered.steer("vector", (-2.0, 3.0), vector=file, site=str(LAYER), positions="-1")
    assert steered.answers("vector") == steered.answers("row_again")
    with saelake.open(steered.lake.root) as opened:
        layer, vector = opened.sql("select layer, vector from directions where chosen").fetchall()[0]
        norms = opened.sql("select distinct source, sites, positions, norm from doses where source like 'row%'").fetchall()
    assert norms == [("row.npy", f"blocks.{LAYER}.hook_resid_post", "-1", pytest.approx(float(row.norm()), rel=1e-5))]
    steered.steer("along", (-30.0, 30.0), direction="chosen")
    subject = saelake.Subject(loaded.model, loaded.tokenizer, target_tokens=[steered.planted.refusal_token])
    engine = saelake.Engine(subject, list(loaded.saes))
    for strength in (-30.0, 30.0):
        mine = {text: (p, said) for text, dose, p, said in steered.answers("along") if dose == strength}
        said = engine.answer(
            list(map(str, mine)),
            add={layer: (np.array(vector, dtype=np.float32), strength)},
            max_new_tokens=steered.recipe.generation.max_new_tokens,
        )
        assert [said for _, said in mine.values()] == said.texts
        np.testing.assert_allclose([p for p, _ in mine.values()], said.p_target, atol=1e-4)


@pytest.mark.parametrize(
    ("strengths", "features", "more", "error", "words"),
    [
        ((1.0,), None, {}, UserError, "one of --features, --direction and --vector"),
        ((1.0,), "5:5", {"direction": "chosen"}, UserError, "one of --features, --direction and --vector"),
        ((), "5:5", {}, UserError, "strengths are"),
        ((float("nan"),), "5:5", {}, UserError, "strengths are"),
        ((1.0, 1.0), "5:5", {}, UserError, "named twice"),
        ((0.0,), "5:5", {}, UserError, "needs a strength beside 0"),
        ((1.0,), None, {"direction": "chosen", "clamp": True}, UserError, "only features can be clamped"),
        ((1.0,), None, {"vector": Path("absent.npy")}, UserError, "a vector needs a site"),
        ((1.0,), None, {"vector": Path("absent.npy"), "site": "5"}, UserError, "there is no file absent.npy"),
        ((1.0,), None, {"direction": "77"}, UserError, "no direction of layer 77"),
        ((1.0,), None, {"direction": "last"}, UserError, "is chosen or a layer"),
        ((1.0,), "5:5", {"positions": "system"}, UserError, "no token of the role"),
        ((1.0,), "5:999", {}, QueryError, "there is no feature 999"),
        ((1.0,), "select 5 as layer, 5 as feature_id, 2.0 as value", {}, UserError, "no value of their own"),
        ((1.0,), "select 5 as layer, 5 as feature_id, '-1' as positions", {}, UserError, "no positions of their own"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence(
    steered: Steered,
    strengths: tuple[float, ...],
    features: str | None,
    more: dict[str, object],
    error: type[Exception],
    words: str,
) -> None:
    before = steered.lake.run_ids()
    with pytest.raises(error, match=words):
        steered.steer("wrong", strengths, features, **more)
    assert steered.lake.run_ids() == before


def test_strengths_at_their_limits() -> None:
    check_sweep(Sweep("a", tuple(range(100))), 1)
    with pytest.raises(UserError, match="strengths are 1 to 100 finite numbers"):
        check_sweep(Sweep("a", tuple(range(101))), 1)
    for n in (0, 2):
        with pytest.raises(UserError, match="steer needs one of"):
            check_sweep(Sweep("a", (1.0,)), n)
    check_sweep(Sweep("a", (0.0,), clamp=True), 1)
    assert doses(Sweep("a", (3.0, -1.0))) == [-1.0, 0.0, 3.0]
    assert doses(Sweep("a", (3.0, 0.0))) == [0.0, 3.0]
    assert doses(Sweep("a", (3.0, 0.0), clamp=True)) == [None, 0.0, 3.0]
    edits = EditSet.of([(2, 5, 0.0, None), (0, 7, 0.0, None)])
    assert features_source(edits, {0: "a", 2: "b"}).name == "0:7, 2:5"
    same = [(2, 5, 0.0, None), (0, 7, 0.0, "bos")]
    contents = {Source("x", edits).content, Source("x", EditSet.of(same)).content, Source("x", vector=np.ones(2)).content}
    assert len(contents) == 3
    assert stage(Sweep("a", (1.0,)), Source("x", edits)).name == "steer_a"


def test_the_command_shows_the_table_and_draws_it(steered: Steered, tmp_path: Path) -> None:
    chart = tmp_path / "dose.svg"
    command = ["steer", str(steered.planted.recipe), "--name", "shown", "--features", steered.feature, "--strengths", "-2,2"]
    result = CliRunner().invoke(cli.main, [*command, "--chart", str(chart), "--lake", str(steered.lake.root)])
    assert result.exit_code == 0, result.output
    assert "steer_shown" in result.output
    assert [line.split()[:2] for line in result.output.splitlines() if line.startswith(("benign", "harmful"))] == [
        [label, strength] for label in ("harmful", "benign") for strength in ("-2", "0", "2")
    ]
    drawn = chart.read_text()
    assert drawn.startswith("<svg")
    assert "var(--" not in drawn
    checked = CliRunner().invoke(cli.main, ["check", "--lake", str(steered.lake.root)])
    assert checked.exit_code == 0, checked.output
    page = tmp_path / "report.html"
    report = CliRunner().invoke(cli.main, ["report", "--lake", str(steered.lake.root), "-o", str(page)])
    assert report.exit_code == 0, report.output
    assert "Dose response: shown" in page.read_text()
