"""Several SAEs on one layer in one study: through ingest, ablation, every search and stage, and by SQL."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest
from safetensors.torch import load_file, save_file

import saelake
from saelake.analysis import verbs
from saelake.analysis.study_status import study_status
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.ingest.saes.refs import layer_of, numbered
from saelake.ingest.study import open_study
from saelake.queries import QueryError
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.planted import Planted, minimal_sets, write_planted

ROLL = 3
"""Latent i of an SAE is latent i + ROLL of its twin."""
SEARCHES = """
[algorithm1]
direction = "own"
block_size = 2
taus = [0.4]
seeds = 1

[minimal]
direction = "own"
starts = 2
"""


def write_twins(folder: Path, layers: tuple[int, ...] = (2, 4)) -> Planted:
    """The planted study, some of whose SAEs have a twin on their layer: the same latents by other numbers."""
    planted = write_planted(folder)
    for layer in layers:
        source, twin = folder / "saes" / f"layer_{layer}", folder / "twins" / f"layer_{layer}"
        twin.mkdir(parents=True)
        (twin / "cfg.json").write_bytes((source / "cfg.json").read_bytes())
        weights = load_file(source / "sae_weights.safetensors")
        rolled = {n: w if n == "b_dec" else w.roll(ROLL, 1 if n == "W_enc" else 0).contiguous() for n, w in weights.items()}
        save_file(rolled, twin / "sae_weights.safetensors")
    text = planted.recipe.read_text().replace("[saes]", "[[saes]]")
    text = text.replace("[[prompts]]", f'[[saes]]\npath = "twins/layer_{{layer}}"\nlayers = {list(layers)}\n\n[[prompts]]', 1)
    planted.recipe.write_text(text + SEARCHES)
    return planted


class Twins:
    def __init__(self, folder: Path) -> None:
        self.planted = write_twins(folder / "study")
        self.recipe = load_recipe(self.planted.recipe)
        self.lake = Lake.create(folder / "lake")
        verbs.analyze(self.recipe, self.lake)
        self.opened = saelake.open(self.lake.root)
        rows = self.opened.sql("select sae_id, layer, name from saes order by layer, sae_id").fetchall()
        self.width = self.opened.sql("select max(width) from saes").fetchall()[0][0]
        refs = {ref.sae_id: ref for ref in open_study(self.recipe).saes}
        self.is_twin = {sae_id: "twins" in str(refs[sae_id].path) for sae_id, _, _ in rows}
        self.by_layer: dict[int, dict[bool, str]] = {}
        for sae_id, layer, _ in rows:
            self.by_layer.setdefault(layer, {})[self.is_twin[sae_id]] = sae_id

    def original(self, sae_id: str, feature_id: int) -> int:
        """The number of a latent in the SAE that is not the twin."""
        return (feature_id - ROLL) % self.width if self.is_twin[sae_id] else feature_id


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    found = Twins(tmp_path_factory.mktemp("pairs"))
    yield found
    found.opened.close()


def test_every_sae_has_its_own_rows(twins: Twins) -> None:
    assert [len(saes) for _, saes in sorted(twins.by_layer.items())] == [1, 1, 2, 1, 2, 1]
    for layer in (2, 4):
        one, twin = twins.by_layer[layer][False], twins.by_layer[layer][True]
        rows = {
            sae_id: {
                (prompt_id, pos, twins.original(sae_id, feature_id)): activation
                for prompt_id, pos, feature_id, activation in twins.opened.sql(
                    f"select prompt_id, pos, feature_id, activation from activations where sae_id = '{sae_id}'"
                ).fetchall()
            }
            for sae_id in (one, twin)
        }
        assert rows[one].keys() == rows[twin].keys()
        assert rows[one] == pytest.approx(rows[twin], abs=1e-4)
    for table in ("features", "alignments"):
        asked = f"select sae_id, count(distinct feature_id) from {table} group by sae_id"
        assert dict(twins.opened.sql(asked).fetchall()) == dict.fromkeys(twins.is_twin, twins.width)


def test_the_candidates_are_the_best_of_each_sae(twins: Twins) -> None:
    best = twins.opened.query("candidates", k=1, direction="own").select("sae_id", "feature_id").fetchall()
    assert len(best) == 8
    for layer in (2, 4):
        by_sae = dict(best)
        one, twin = twins.by_layer[layer][False], twins.by_layer[layer][True]
        assert by_sae[one] == twins.original(twin, by_sae[twin])


def test_minimal_sets_are_the_enumerated_ones_and_name_no_latent_twice(twins: Twins) -> None:
    asked = """
        select p.text, a.draw, f.layer, f.sae_id, f.feature_id
        from ablations as a
        join prompts as p using (prompt_id)
        join feature_sets as f using (set_id)
        where a.condition = 'minimal' and p.label = 'harmful'
    """
    sets: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for text, draw, layer, sae_id, feature_id in twins.opened.sql(asked).fetchall():
        sets.setdefault((text, draw), []).append((layer, twins.original(sae_id, feature_id)))
    assert sets
    assert any(twins.is_twin[sae_id] for *_, sae_id, _ in twins.opened.sql(asked).fetchall())
    for (text, _), found in list(sets.items())[:6]:
        assert set(found) in [set(one) for one in minimal_sets(twins.planted, text)]
        assert len(set(found)) == len(found)


def test_features_are_ablated_by_sae_and_a_layer_with_several_is_refused(twins: Twins) -> None:
    layer, feature_id = 2, twins.planted.primary
    one, twin = twins.by_layer[layer][False], twins.by_layer[layer][True]
    answers = []
    for sae_id, latent in ((one, feature_id), (twin, (feature_id + ROLL) % twins.width)):
        record = verbs.ablate(twins.recipe, twins.lake, f"by_{'twin' if sae_id == twin else 'one'}", f"{sae_id}:{latent}")
        with saelake.open(twins.lake.root) as lake:
            rows = lake.sql(f"select prompt_id, completion from all_runs.ablations where run_id = '{record.run_id}' order by 1")
            answers.append(rows.fetchall())
    assert answers[0] == answers[1]
    with pytest.raises(QueryError, match=f"features: layer {layer} has several SAEs: give the sae_id"):
        verbs.ablate(twins.recipe, twins.lake, "unclear", f"{layer}:{feature_id}")
    verbs.ablate(twins.recipe, twins.lake, "clear", "3:0")
    with pytest.raises(QueryError, match="the study has no SAE with sae_id layer_09-x"):
        verbs.ablate(twins.recipe, twins.lake, "absent", "layer_09-x:0")


def test_every_stage_has_run(twins: Twins) -> None:
    assert {status.state for status in study_status(twins.recipe, twins.lake)} == {"done"}


def test_numbers_of_saes_stay_when_saes_of_other_layers_come(twins: Twins) -> None:
    refs = open_study(twins.recipe).saes
    known = numbered(refs)
    assert sorted(known) == [0, 1, 2, 3, 4, 5, 1002, 1004]
    assert all(layer_of(number) == ref.layer for number, ref in known.items())
    fewer = numbered([ref for ref in refs if ref.layer != 3])
    assert all(known[number] == ref for number, ref in fewer.items())


def test_one_group_is_the_study_that_it_was_before_there_were_groups(tmp_path: Path) -> None:
    planted = write_planted(tmp_path)
    table = load_recipe(planted.recipe)
    planted.recipe.write_text(planted.recipe.read_text().replace("[saes]", "[[saes]]"))
    group = load_recipe(planted.recipe)
    assert group.sae_groups == table.sae_groups


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('path = "twins/layer_{layer}"', 'path = "saes/layer_{layer}"', "saes: .*layer_2 is named twice for layer 2"),
        ('path = "twins/layer_{layer}"', 'path = "copies/layer_{layer}"', "saes: .*layer_2 and .*copies/layer_2 are one SAE"),
        (
            'path = "twins/layer_{layer}"',
            'pth = "twins/layer_{layer}"',
            r"there is no field saes\[1\]\.pth \(did you mean 'path'\?\)",
        ),
    ],
)
def test_mistakes_in_groups_are_named_as_the_file_has_them(tmp_path: Path, old: str, new: str, expected: str) -> None:
    planted = write_twins(tmp_path)
    copytree(tmp_path / "saes", tmp_path / "copies")
    planted.recipe.write_text(planted.recipe.read_text().replace(old, new))
    with pytest.raises(UserError, match=expected):
        open_study(_read(planted))


def _read(planted: Planted) -> Recipe:
    return load_recipe(planted.recipe)
