"""No result depends on the sizes of shards and batches: two studies, computed in several ways, table by table."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pytest

from saelake.analysis import verbs
from saelake.analysis.engine import memory
from saelake.analysis.interactions import waking
from saelake.analysis.search import minimal
from saelake.analysis.search.candidates import shards_of_split
from saelake.ingest.prompts import Prompt
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.ingest.study import Study
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from saelake.warehouse.schema import TABLES
from tests.planted import write_planted

FEW = """
[algorithm1]
seeds = 2
taus = [0.1, 0.5]
block_size = 2
[minimal]
starts = 2
[controls]
random_draws = 1
firing_on_tokens = [1, 2]
clamp_values = [5.0]
[steering]
features = "critical"
values = [2.0]
[losses]
sets = 2
[fm]
sizes = [2]
[probe]
ks = [2]
[stage3]
size = 2
ks = [1, 2]
random_draws = 1
[[losses.texts]]
set = "plain"
file = "prompts.jsonl"
text = "instruction"
take = 6
max_tokens = 10
[atlas]
prompts = 1
last_tokens = 1
largest = 4
triples = 10
"""
FEWER: dict[str, dict[str, Any]] = {
    "algorithm1": {"taus": (0.2, 0.5), "seeds": 2},
    "minimal": {"starts": 2},
    "controls": {"random_draws": 1, "firing_on_tokens": (1, 4), "clamp_values": (4.0,)},
    "steering": {"n_features": 3, "values": (4.0,)},
    "fm": {"sizes": (5, 20)},
    "probe": {"ks": (5,)},
    "stage3": {"ks": (1, 5)},
}
"""Of the embedded study: each thing in two sizes where it has more."""
PROMPTS = 3
"""Of each label and split: more of them are more shards, and no other way to cut them."""
NOT_COMPUTED = {"activations_by_prompt", "explanations", "annotations", "concepts", "doses"}
NOT_COMPUTED |= {"readings", "recoveries", "recovery_rates", "examples", "reported_logits", "feature_reports", "graph_edges"}
NOT_COMPUTED |= {"messages"}
"""What neither an analysis of the planted study nor its atlas writes: other commands, or an import, do."""
Content = Mapping[str, Mapping[tuple[Any, ...], list[tuple[float, ...]]]]
"""table -> what is discrete in a row -> the floating-point numbers of the rows that are alike in that"""


class Sizes(NamedTuple):
    shard_prompts: int
    batch_tokens: int
    engine_tokens: int
    """Padded tokens of an ablated pass, and those whose activations are captured at a time."""


def analysed(folder: Path, sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> tuple[Recipe, Lake]:
    file = write_planted(folder).recipe
    text = file.read_text().replace("random_draws = 3", "").replace("[controls]\n", "")
    text = text.replace("[capture]\n", "[capture]\nanswer_tokens = 2\n")
    for name in ("shard_prompts = 16", "batch_tokens = 512"):
        text = text.replace(name, f"{name.split(' = ')[0]} = {getattr(sizes, name.split(' = ')[0])}")
    file.write_text(text.replace("cap = 4", "cap = 3") + FEW)
    monkeypatch.setitem(memory.MOST_TOKENS, "cpu", sizes.engine_tokens)
    monkeypatch.setattr(waking, "CAPTURED_TOKENS", sizes.engine_tokens)
    recipe, lake = load_recipe(file).limit(PROMPTS), Lake.create(folder / "lake")
    verbs.analyze(recipe, lake)
    verbs.atlas_study(verbs.open_analysis(recipe), lake)
    return recipe, lake


def content(lake: Lake) -> Content:
    """All tables, with what an id stands for in its place, since the ids carry the run, and a run its sizes."""
    with connect(lake) as con:
        texts = dict(con.execute("select prompt_id, text from prompts").fetchall())
        sets: dict[int, list[Any]] = defaultdict(list)
        for set_id, *feature in con.execute("select set_id, sae_id, feature_id, value from feature_sets order by all").fetchall():
            sets[set_id].append(tuple(feature))
        known: dict[str, Mapping[int, Any]] = {"prompt_id": texts, "set_id": {i: tuple(found) for i, found in sets.items()}}
        asked = con.execute(
            "select ablation_id, prompt_id, set_id, stage, condition, seed, draw, k, tau from ablations"
        ).fetchall()
        known["ablation_id"] = {i: (texts[p], known["set_id"].get(s), *rest) for i, p, s, *rest in asked}
        return {name: _rows(con, name, known) for name in TABLES if name != "runs"}


def _rows(con: duckdb.DuckDBPyConnection, name: str, known: Mapping[str, Mapping[int, Any]]) -> Mapping[Any, list[Any]]:
    # A rank is of numbers that are compared themselves: two that differ by rounding may change places.
    columns = [c for c in TABLES[name].columns if c.name not in ("run_id", "rank")]
    if not con.execute("select 1 from duckdb_views() where view_name = ?", [name]).fetchall():
        return {}
    found: dict[tuple[Any, ...], list[tuple[float, ...]]] = defaultdict(list)
    for row in con.execute(f"select {', '.join(c.name for c in columns)} from {name}").fetchall():
        discrete: list[Any] = []
        numbers: list[float] = []
        for column, value in zip(columns, row, strict=True):
            identity = column.identity
            if isinstance(value, float) and column.name != "tau":
                numbers.append(value)
            elif isinstance(value, list):
                numbers.extend(value)
            else:
                discrete.append(known[identity][value] if identity in known and value is not None else value)
        found[tuple(discrete)].append(tuple(numbers))
    return {key: sorted(numbers) for key, numbers in found.items()}


def differences(one: Content, other: Content) -> list[str]:
    """What differs between two studies, a line each."""
    found = []
    for name in one:
        for key in one[name].keys() ^ other[name].keys():
            found.append(f"{name}: {key} is in {'the first' if key in one[name] else 'the second'} only")
        for key in one[name].keys() & other[name].keys():
            a, b = one[name][key], other[name][key]
            if len(a) != len(b):
                found.append(f"{name}: {key} is there {len(a)} and {len(b)} times")
            elif not np.allclose(np.array(a), np.array(b), rtol=2e-4, atol=2e-5):
                found.append(f"{name}: {key} has {a} and {b}")
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """All prompts in one shard, and batches as large as they get."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return content(analysed(tmp_path_factory.mktemp("whole"), Sizes(1000, 8192, 4096), monkeypatch)[1])


def test_no_table_depends_on_the_sizes_of_shards_and_batches(
    whole: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt a shard, and batches of two or three; the other study has shards that are not all of one size."""
    monkeypatch.setitem(minimal.AT_ONCE, "cpu", 2)
    _, lake = analysed(tmp_path, Sizes(1, 40, 64), monkeypatch)
    empty = {name for name, rows in whole.items() if not rows}
    assert empty <= NOT_COMPUTED, "nothing to compare"
    found = differences(whole, content(lake))
    assert not found, "\n".join(sorted(found)[:20])


def test_the_embedded_study_does_not_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Prompts of several lengths, and what fires on them is not a whole number."""
    shipped, found = load_recipe("organism").limit(2), []
    fewer = {name: getattr(shipped, name).model_copy(update=fields) for name, fields in FEWER.items()}
    texts = [one.model_copy(update={"take": 5}) for one in shipped.losses.texts]
    fewer["losses"] = shipped.losses.model_copy(update={"texts": tuple(texts), "sets": 2})
    for number, sizes in enumerate((Sizes(1000, 8192, 4096), Sizes(3, 100, 300))):
        monkeypatch.setitem(memory.MOST_TOKENS, "cpu", sizes.engine_tokens)
        monkeypatch.setattr(waking, "CAPTURED_TOKENS", sizes.engine_tokens)
        stored = {"shard_prompts": sizes.shard_prompts, "batch_tokens": sizes.batch_tokens}
        lake = Lake.create(tmp_path / str(number))
        verbs.analyze(shipped.model_copy(update={**fewer, "capture": shipped.capture.model_copy(update=stored)}), lake)
        found.append(content(lake))
    assert len(found[0]["ablations"]) > 200
    differing = differences(*found)
    assert not differing, "\n".join(sorted(differing)[:20])


def test_a_stage_that_computes_much_for_each_prompt_lands_few_together() -> None:
    recipe = load_recipe("gemma-2-2b")
    split, labels = recipe.candidates.split, recipe.labels
    prompts = [Prompt("x", split, label, None, str(n), str(n)) for label in (labels.target, labels.control) for n in range(150)]
    study = Study(recipe, prompts, [], "", "cpu")
    largest = {name: max(map(len, shards_of_split(study, name).values())) for name in ("baseline", "candidates", "minimal", "")}
    assert largest == {"baseline": 128, "candidates": 25, "minimal": 8, "": 128}
    for name in largest:
        assert [one for part in shards_of_split(study, name).values() for one in part] == list(range(300)), "every prompt once"
    by_token = recipe.model_copy(update={"verdicts": recipe.verdicts.model_copy(update={"oracle": "first_token"})})
    shards = shards_of_split(Study(by_token, prompts, [], "", "cpu"), "minimal")
    assert max(map(len, shards.values())) == 128, "a pass each, where nothing is generated to be judged"
