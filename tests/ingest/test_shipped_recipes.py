"""Every shipped recipe says what the paper fixes (the replication list's figures), and names what SAELens knows."""

import hashlib
from pathlib import Path

import duckdb
import pytest

from saelake.ingest.recipe import RECIPES, Column, Fractions, Recipe, load_recipe
from saelake.ingest.saes.refs import listed_saes
from saelake.ingest.template import ChatTemplate
from tests.ingest.tiny import gemma_tokenizer, llama3_tokenizer
from tests.paper import GEMMA_L0

PAPER = ("gemma-2-2b", "llama-3.1-8b")
SPLITS = {
    "harmful_train": ("8f5c0eac0efd2a7f99084bbe8d0de2c465e31b1997184783c917969d9de9ece1", 260),
    "harmful_val": ("305f1d1e6dfa6c50a32d24a18ef815f42b5441eb83e6d7767d242107162fd9f4", 39),
    "harmful_test": ("5e12ae102c3791dee083a69ab6269a78e033411c629bc3f66f75d2fde196d9ef", 572),
}
COMMIT = "9d852fae1a9121c78b29142de733cb1340770cc3"


@pytest.fixture(params=PAPER)
def paper(request: pytest.FixtureRequest) -> Recipe:
    return load_recipe(request.param)


def test_every_recipe_loads_and_carries_no_path_of_a_machine() -> None:
    names = sorted(file.stem for file in RECIPES.glob("*.toml"))
    assert names == [
        *("gemma-2-2b", "gemma-3-270m", "hydra", "llama-3.1-8b"),
        *("organism", "organism-approval", "planted", "smollm2-135m", "smollm2-refusal"),
    ]
    for name in names:
        assert load_recipe(name).name == name
        text = (RECIPES / f"{name}.toml").read_text("utf-8")
        assert not any(place in text for place in ("/work", "/tmp", "/home", "/root")), name


def test_gemma_r1() -> None:
    recipe = load_recipe("gemma-2-2b")
    assert (recipe.model.id, recipe.model.dtype) == ("google/gemma-2-2b-it", "bfloat16")
    assert recipe.saes.layers == tuple(range(16))
    assert recipe.saes.l0 == GEMMA_L0
    ids = [f"layer_{layer}/width_65k/average_l0_{l0}" for layer, l0 in enumerate(GEMMA_L0)]
    listed = listed_saes(recipe.saes)
    assert (listed.ids, listed.repository) == (ids, "google/gemma-scope-2b-pt-res")
    assert (recipe.candidates.step, recipe.candidates.cap) == (10, 200)
    assert recipe.steering.values == (2, 10, 20, 30)


def test_llama_r1() -> None:
    recipe = load_recipe("llama-3.1-8b")
    assert (recipe.model.id, recipe.model.dtype) == ("meta-llama/Llama-3.1-8B-Instruct", "bfloat16")
    listed = listed_saes(recipe.saes)
    assert listed.ids == [f"l{layer}r_32x" for layer in range(13)], "pools span layers 2..12"
    assert listed.l0s == [50] * 13
    assert (recipe.candidates.step, recipe.candidates.cap) == (10, 10)
    assert recipe.steering.values == (2, 4, 6, 8)


def test_prompts_r2(paper: Recipe) -> None:
    sets = {one.set: one for one in paper.prompts}
    harmful = sets["harmful"]
    assert (harmful.deduplicate, harmful.count, harmful.split) == (True, 861, paper.candidates.split)
    assert harmful.sources is not None
    for source, (name, (sha256, count)) in zip(harmful.sources, SPLITS.items(), strict=True):
        assert source.url is not None
        assert source.url.endswith(f"/andyrdt/refusal_direction/{COMMIT}/dataset/splits/{name}.json")
        assert (source.sha256, source.count) == (sha256, count)
    assert {(one.split, one.label, one.count) for one in paper.prompts if one.split in ("train", "val")} == {
        ("train", "harmful", 128),
        ("train", "benign", 128),
        ("val", "harmful", 32),
    }
    assert isinstance(sets["harmless"].split, Fractions)
    assert sets["harmless"].count == 160
    assert sets["coconot"].hub == "allenai/coconot"
    assert all(COMMIT in (source.url or "") for one in paper.prompts for source in one.files)


def test_stages_r3_to_r10(paper: Recipe) -> None:
    assert (paper.direction.kl_max, paper.direction.induce_min, paper.direction.drop_last_layers) == (0.1, 0.5, 0.2)
    assert paper.candidates.exclude_layers == (0, 1)
    assert paper.candidates.directions[0] == "chosen"
    greedy = paper.algorithm1
    assert (greedy.direction, greedy.block_size, greedy.seeds) == ("chosen", 5, 3)
    assert greedy.taus == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    assert paper.verdicts.oracle == "harmbench"
    assert set(paper.verdicts.judges) == {"harmbench", "phrases", "first_token"}
    assert (paper.interactions.sets, paper.interactions.tokens) == (("advbench", "alpaca"), 4)
    assert (paper.interactions.val, paper.interactions.test) == (0.1, 0.1)
    assert (paper.fm.sizes, paper.fm.learning_rate, paper.fm.epochs) == ((5, 20, 50), 1e-3, 20)
    assert (paper.stage3.size, paper.stage3.ks) == (20, tuple(range(100, 2001, 100)))
    assert paper.probe.ks == (100, 500, 1000, 2000)
    assert [(one.hub, one.take) for one in paper.losses.texts] == [
        ("tatsu-lab/alpaca", 100),
        ("monology/pile-uncopyrighted", 100),
    ]
    assert paper.capture.round == "bfloat16"
    assert paper.model.refusal_tokens == ("I",)


def test_meaning_of_features_r18_r20(paper: Recipe) -> None:
    assert paper.taxonomy.sets == ("coconot",)
    coconot = next(prompts for prompts in paper.prompts if prompts.set == "coconot")
    assert (coconot.hub, coconot.label, coconot.category) == ("allenai/coconot", "harmful", Column(column="subcategory"))
    groups = {"punctuation", "programming", "harm/violence/safety", "legal", "morality", "support/guidance", "sexual themes"}
    own = {"scam/fraud"} if paper.name == "gemma-2-2b" else {"uncertainty", "social issues"}
    assert set(paper.concepts.patterns) == groups | own
    with duckdb.connect() as con:
        for concept, text in {
            "punctuation": "commas and periods in lists",
            "programming": "references to programming code",
            "harm/violence/safety": "phrases related to Violence",
            "legal": "judgements of a court",
            "morality": "moral duties",
            "support/guidance": "offers of support",
            "sexual themes": "sexual content",
        }.items():
            hits = [
                name
                for name, patterns in paper.concepts.patterns.items()
                if any(con.execute("select regexp_matches(?, ?, 'i')", [text, one]).fetchall() == [(True,)] for one in patterns)
            ]
            assert hits == [concept], text


def test_laptop_study() -> None:
    recipe = load_recipe("gemma-3-270m")
    listed = listed_saes(recipe.saes)
    assert listed.ids == [f"layer_{layer}_width_16k_l0_medium" for layer in (5, 9, 12, 15)]
    assert listed.l0s == [55, 60, 60, 60]
    assert listed.conversion == "gemma_3"


def test_templates_write_what_the_models_own_ones_do() -> None:
    gemma = ChatTemplate.of(gemma_tokenizer(), load_recipe("gemma-2-2b").model)
    assert gemma.render(" Hi ") == "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    assert ChatTemplate.of(gemma_tokenizer(), load_recipe("gemma-3-270m").model).render("Hi") == gemma.render("Hi")
    llama = ChatTemplate.of(llama3_tokenizer(), load_recipe("llama-3.1-8b").model)
    assert llama.render("Hi") == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_several_sources_are_one_set(tmp_path: Path) -> None:
    from saelake.ingest.prompts import load_prompts
    from saelake.warehouse.errors import UserError

    texts = [["a", "b"], ["c", "a"], ["d", "b", "e"]]
    sources = []
    for number, rows in enumerate(texts):
        file = tmp_path / f"{number}.csv"
        file.write_text("instruction\n" + "".join(f"{row}\n" for row in rows))
        sources.append({"file": file, "count": len(rows), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()})

    def study(**changes: object) -> Recipe:
        one = {"set": "s", "label": "harmful", "split": "test", "sources": sources, "deduplicate": True, "count": 5} | changes
        saes = {"path": tmp_path, "layers": [0]}
        return Recipe.model_validate({"name": "test", "model": {"id": "a/b"}, "saes": saes, "prompts": [one]})

    assert [prompt.text for prompt in load_prompts(study())] == ["a", "b", "c", "d", "e"]
    with pytest.raises(UserError, match="rows 1 and 4 are the same prompt"):
        load_prompts(study(deduplicate=False))
    with pytest.raises(UserError, match="has 5 prompts, but its count says 6"):
        load_prompts(study(count=6))
    sources[1]["count"] = 3
    with pytest.raises(UserError, match=r"1\.csv has 2 rows, but its count says 3"):
        load_prompts(study())
    sources[1] |= {"count": 2, "sha256": "0" * 64}
    with pytest.raises(UserError, match=r"1\.csv has sha256"):
        load_prompts(study())
