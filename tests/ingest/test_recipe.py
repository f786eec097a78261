"""Recipes: what a file may say, what is filled in, and the sentence for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from saelake.ingest.recipe import RECIPES, Column, Fractions, Recipe, load_recipe
from saelake.ingest.saes.refs import list_saes
from saelake.warehouse.errors import UserError
from tests.ingest.tiny import save_sae

MINIMAL = """
name = "small"
[model]
id = "google/gemma-2-2b-it"
[saes]
release = "gemma-scope-2b-pt-res"
id = "layer_{layer}/width_65k/average_l0_{l0}"
layers = [0, 1]
l0 = [43, 54]
[[prompts]]
set = "own"
file = "own.csv"
label = "harmful"
"""


def write(folder: Path, text: str = MINIMAL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.csv").write_text("instruction\nhello\n")
    file = folder / "small.toml"
    file.write_text(text, "utf-8")
    return file


def load(folder: Path, *changes: tuple[str, str]) -> Recipe:
    text = MINIMAL
    for old, new in changes:
        assert old in text, f"{old!r} is not in the minimal recipe"
        text = text.replace(old, new, 1)
    return load_recipe(write(folder, text))


def mistake(folder: Path, *changes: tuple[str, str]) -> str:
    """The sentence that the minimal recipe gives after some changes."""
    with pytest.raises(UserError) as caught:
        load(folder, *changes)
    message = str(caught.value)
    assert "small.toml" in message, "the file is named"
    assert "\n" not in message, "one sentence"
    return message


def test_minimal_recipe_gets_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe.model.dtype == "float32"
    assert recipe.model.refusal_tokens == ("I",)
    assert recipe.prompts[0].split == Fractions(shares={"train": 0.4, "val": 0.2, "test": 0.4})
    assert recipe.direction.drop_last_layers == 0.2
    assert (recipe.direction.kl_max, recipe.direction.induce_min) == (0.1, 0.5)
    assert recipe.capture.round == "none"
    assert recipe.file == tmp_path / "small.toml"


def test_recipe_is_immutable(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path).model.dtype = "bfloat16"


def test_paths_resolve_against_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "recipes")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe("../recipes/small.toml")
    assert recipe.prompts[0].file == tmp_path / "recipes" / "own.csv"


def test_l0_list_fills_the_pattern_and_is_declared(tmp_path: Path) -> None:
    saes = load(tmp_path).saes
    assert saes.fill(saes.id or "", 1) == "layer_1/width_65k/average_l0_54"
    assert saes.declared_l0(0) == 43


def test_label_column_can_rename_values(tmp_path: Path) -> None:
    recipe = load(tmp_path, ('label = "harmful"', 'label = { column = "y", map = { bad = "harmful" } }'))
    assert recipe.prompts[0].label == Column(column="y", map={"bad": "harmful"})


def test_split_can_be_constant_column_or_fractions(tmp_path: Path) -> None:
    def with_split(split: str) -> object:
        return load(tmp_path, ('label = "harmful"', f'label = "harmful"\nsplit = {split}')).prompts[0].split

    assert with_split('"test"') == "test"
    assert with_split('{ column = "fold" }') == Column(column="fold")
    assert with_split("{ a = 0.25, b = 0.75, seed = 3 }") == Fractions(shares={"a": 0.25, "b": 0.75}, seed=3)


def test_section_is_json_without_paths(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    recipe = load(tmp_path, ("[saes]", 'chat_template_file = "t.jinja"\n[saes]'))
    names = ["model", "capture", "direction", "candidates", "controls", "generation", "compute"]
    assert str(tmp_path) not in json.dumps([recipe.section(name) for name in names])
    assert recipe.section("model")["chat_template"] == "{{ messages }}", "the pinned template counts by its text"


def test_section_depends_on_content_not_on_the_folder(tmp_path: Path) -> None:
    here, there = load(tmp_path / "a"), load(tmp_path / "b", ("id = ", 'dtype = "float32"\nid = '))
    assert here.section("model") == there.section("model"), "a default written out is the same content"
    assert here.section("model") != load(tmp_path / "c", ("id = ", 'dtype = "bfloat16"\nid = ')).section("model")


@pytest.mark.parametrize("name", ["prompts", "saes", "verdicts"])
def test_what_a_runs_id_holds_by_hashes_has_no_section_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(AssertionError, match=f"no section '{name}' in a run's id"):
        load(tmp_path).section(name)


def test_limit_is_a_new_recipe_from_the_same_file(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe.limit(5).prompts_per_group == 5
    assert recipe.limit(5).file == recipe.file
    assert recipe.prompts_per_group is None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[model]\n", '[model]\nrefusal_token = ["I"]\n', "no field model.refusal_token (did you mean 'refusal_tokens'?)"),
        ("[model]\n", "[model]\nzzzz = 1\n", "no field model.zzzz: the fields there are path, id, revision"),
        ("[model]\n", "[modell]\n", "no field modell (did you mean 'model'?)"),
        ('label = "harmful"', 'label = { colum = "y" }', "no field prompts[0].label.colum (did you mean 'column'?)"),
        ('label = "harmful"', "", "the field prompts[0].label is missing"),
        ('label = "harmful"', "label = 3", "prompts[0].label: Input should be a text or a table, not 3"),
        ('name = "small"', "", "the field name is missing"),
        ('name = "small"', 'name = "3 small"', "name: String should match pattern"),
        ("[saes]", 'dtype = "float16"\n[saes]', "model.dtype: Input should be 'float32' or 'bfloat16', not 'float16'"),
        ("[saes]", 'path = "."\n[saes]', "model: give exactly one of path, id, package, not path and id"),
        ('id = "google/gemma-2-2b-it"', "", "model: give exactly one of path, id, package, not none"),
        ('id = "google/gemma-2-2b-it"', 'path = "nowhere"', "model.path: there is no nowhere in"),
        ('id = "google/gemma-2-2b-it"', 'path = "."\nrevision = "x"', "revision only makes sense together with id"),
        (
            "[saes]",
            'chat_template = "a"\nchat_template_file = "own.csv"\n[saes]',
            "chat_template or chat_template_file, not both",
        ),
        ("[saes]", 'template_sha256 = "12"\n[saes]', "model.template_sha256: String should match pattern"),
        ("l0 = [43, 54]", "l0 = [43]", "saes: l0 lists 1 values for 2 layers"),
        ("l0 = [43, 54]", "", "has {l0} in it: give l0"),
        ("layers = [0, 1]", "layers = [1, 1]", "saes: layers lists 1 twice"),
        ("layers = [0, 1]", "layers = []", "saes.layers: "),
        ("layers = [0, 1]", "layers = [-1, 1]", "saes.layers[0]: Input should be greater than or equal to 0, not -1"),
        ("layer_{layer}", "layer_3", "needs {layer} in it"),
        ('id = "layer_{layer}/width_65k/average_l0_{l0}"', "", "release needs id"),
        ('release = "gemma-scope-2b-pt-res"', 'path = "no/{layer}"', "id only makes sense together with release"),
        ('file = "own.csv"', 'file = "gone.csv"', "prompts[0].file: there is no gone.csv in"),
        ('file = "own.csv"', 'file = "own.csv"\nhub = "a/b"', "exactly one of file, url, hub, sources, not file and hub"),
        ('file = "own.csv"', 'url = "https://x.org/a.csv"', "url needs sha256"),
        ('file = "own.csv"', 'url = "ftp://x.org/a.csv"', "prompts[0].url: String should match pattern"),
        ('file = "own.csv"', 'file = "own.csv"\nhub_split = "train"', "hub_split only makes sense together with hub"),
        ('file = "own.csv"', f'hub = "a/b"\nsha256 = "{"0" * 64}"', "pin a hub data set with revision"),
        ('label = "harmful"', 'label = "harmful"\nsplit = { a = 0.5, b = 0.6 }', "split: the shares add up to 1.1, not to 1"),
        ('label = "harmful"', 'label = "harmful"\nsplit = { a = "x" }', "prompts[0].split.a: Input should be a valid number"),
        (
            'label = "harmful"',
            'label = "harmful"\n[[prompts]]\nset = "own"\nfile = "own.csv"\nlabel = "benign"',
            "called 'own'",
        ),
        ("[saes]", "x = = 1\n[saes]", "is not valid TOML: Invalid value (at line 5, column 5)"),
        (
            'label = "harmful"',
            'label = "harmful"\n[verdicts]\noracle = "zz"',
            "oracle 'zz' is not one of judges (first_token, phrases)",
        ),
        ('label = "harmful"', 'label = "harmful"\n[candidates]\nexclude_layers = [0, 1]', "leaves no layer"),
        (
            'label = "harmful"',
            'label = "harmful"\n[interactions]\nsets = ["own", "won"]',
            "interactions.sets names 'won', but the sets of [[prompts]] are own",
        ),
        (
            "[saes]",
            "max_prompt_tokens = 32_769\n[saes]",
            "model.max_prompt_tokens is 32,769, but the tables of a lake have 32,768",
        ),
        (
            "[saes]",
            "max_prompt_tokens = 32_768\n[capture]\nanswer_tokens = 1\n[saes]",
            "model.max_prompt_tokens is 32,768 and capture.answer_tokens is 1, but the tables of a lake have 32,768 positions",
        ),
        (
            'label = "harmful"',
            'label = "harmful"\n[capture]\nshard_prompts = 0',
            "capture.shard_prompts: Input should be greater",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in mistake(tmp_path, (old, new))


TEXTS = 'set = "t"\nfile = "own.csv"\ntext = "instruction"\n'


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("where = { n = [1, 2, 1] }", "prompts[0]: where.n lists 1 twice"),
        ('where = { ok = [true, "a", true] }', "prompts[0]: where.ok lists True twice"),
        ("[fm]\nsizes = [5, 20, 5]", "fm: sizes lists 5 twice"),
        ("[algorithm1]\ntaus = [0.1, 0.20, 0.2]", "algorithm1: taus lists 0.2 twice"),
        ("[stage3]\nks = [1, 1]", "stage3: ks lists 1 twice"),
        ("[probe]\nks = [1, 1]", "probe: ks lists 1 twice"),
        ("[controls]\nclamp_values = [2, 2.0]", "controls: clamp_values lists 2.0 twice"),
        ("[steering]\nvalues = [2, 2.0]", "steering: values lists 2.0 twice"),
        ('[verdicts]\njudges = ["phrases", "first_token", "phrases"]', "verdicts: judges lists 'phrases' twice"),
        ('[verdicts]\nphrases = ["No", "No"]', "verdicts: phrases lists 'No' twice"),
        ('[taxonomy]\nsets = ["own", "own"]', "taxonomy: sets lists 'own' twice"),
        ('[interactions]\nsets = ["own", "own"]', "interactions: sets lists 'own' twice"),
        ('[explanations]\npopulations = ["critical", "critical"]', "explanations: populations lists 'critical' twice"),
        ('[concepts]\npatterns = { guns = ["gun", "gun"] }', "concepts: patterns.guns lists 'gun' twice"),
        ('[generation]\nreasoning = [["<a>", "</a>"], ["<a>", "</a>"]]', "generation: reasoning lists ('<a>', '</a>') twice"),
        ('[candidates]\ndirections = ["own", "own"]', "candidates: directions lists 'own' twice"),
        ("[candidates]\nexclude_layers = [1, 1]", "candidates: exclude_layers lists 1 twice"),
        ("[candidates]\nexclude_layers = [1, 5]", "candidates.exclude_layers names layer 5, but the layers of saes"),
        ('[explanations]\nsources = { 5 = "a/b" }', "explanations.sources names layer 5, but the layers of saes"),
        ("[candidates]\nstep = 20\ncap = 10", "candidates: step is 20, but cap, the largest K, is 10"),
        ("[candidates]\ncap = 5", "candidates: step is 10, but cap, the largest K, is 5"),
        (
            '[candidates]\ndirections = ["chosen"]',
            "algorithm1.direction is own, by which there are no candidates: set it to chosen, or add own to candidates",
        ),
        (
            '[candidates]\ndirections = ["chosen"]\n[algorithm1]\ndirection = "first"',
            "minimal.direction is own, by which there are no candidates: set it to chosen, or add own to candidates",
        ),
        (
            '[minimal]\ndirection = "attribution"',
            "minimal.direction is attribution, by which there are no candidates: set it to own or chosen, or "
            "set candidates.attribution = true",
        ),
        ("[waking]\ncontrols = 0\nsimilarity = 3.0", "waking: similarity changes nothing"),
        ("[waking]\ncontrols = 0\noverlap = 0.9", "waking: overlap changes nothing"),
        ("[losses]\nsets = 3", "losses: sets changes nothing"),
        ("[train_saes]\nwidth = 4000", "[train_saes] changes nothing: saes.release names SAEs"),
        (f"[[train_saes.texts]]\n{TEXTS}", "[train_saes] changes nothing"),
    ],
)
def test_a_setting_that_changes_nothing_is_named(tmp_path: Path, more: str, expected: str) -> None:
    assert expected in mistake(tmp_path, ('label = "harmful"', f'label = "harmful"\n{more}'))


def test_what_belongs_to_a_layer_by_its_place_may_come_again(tmp_path: Path) -> None:
    assert load(tmp_path, ("[43, 54]", "[43, 43]")).saes.l0 == (43, 43)
    assert load(tmp_path, ('label = "harmful"', 'label = "harmful"\n[waking]\ncontrols = 0')).waking.controls == 0


@pytest.mark.parametrize(
    "searched",
    [
        '[algorithm1]\ndirection = "chosen"\n[minimal]\ndirection = "chosen"',
        '[algorithm1]\ndirection = "first"\n[minimal]\ndirection = "first"',
        '[algorithm1]\ndirection = "chosen"\n[minimal]\npool = "active"\norder = "attribution"',
    ],
)
def test_what_is_searched_need_only_be_ranked_where_candidates_are(tmp_path: Path, searched: str) -> None:
    recipe = load(tmp_path, ('label = "harmful"', f'label = "harmful"\n[candidates]\ndirections = ["chosen"]\n{searched}'))
    assert recipe.candidates.rankings == ("chosen",)


def test_the_threshold_of_llama_scope_is_no_matter_of_folders(tmp_path: Path) -> None:
    spec = 'release = "gemma-scope-2b-pt-res"\nid = "layer_{layer}/width_65k/average_l0_{l0}"'
    told = mistake(tmp_path, (spec, 'path = "saes/layer_{layer}"\nthreshold = "published"'))
    assert 'threshold = "published" is about the Llama Scope release' in told


def test_missing_sae_folder_is_named_with_its_layer(tmp_path: Path) -> None:
    (tmp_path / "saes" / "layer_0").mkdir(parents=True)
    spec = 'release = "gemma-scope-2b-pt-res"\nid = "layer_{layer}/width_65k/average_l0_{l0}"'
    recipe = load(tmp_path, (spec, 'path = "saes/layer_{layer}"'))
    with pytest.raises(UserError, match=r"there are no \.safetensors weights in"):
        list_saes(recipe)
    save_sae(tmp_path / "saes" / "layer_0", layer=0)
    with pytest.raises(UserError, match=f"saes.path: there is no SAE folder {tmp_path}/saes/layer_1 for layer 1."):
        list_saes(recipe)


def test_unknown_names_and_files() -> None:
    with pytest.raises(UserError, match=r"no recipe organis \(did you mean 'organism'\?\)"):
        load_recipe("organis")
    with pytest.raises(UserError, match=r"no recipe file nowhere/x\.toml"):
        load_recipe("nowhere/x.toml")


def test_recipe_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfea\x00")
    with pytest.raises(UserError, match=r"x\.toml is not valid TOML"):
        load_recipe(tmp_path / "x.toml")


def test_recipe_that_is_empty_says_what_one_needs(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("# to be written\n")
    with pytest.raises(UserError, match=r"x\.toml is empty: give at least name, \[model\], \[saes\] and one \[\[prompts\]\]"):
        load_recipe(tmp_path / "x.toml")


def test_reading_recipes_and_prompts_never_imports_torch(tmp_path: Path) -> None:
    file = write(tmp_path)
    code = (
        "import sys\nfrom ingest.recipe import load_recipe\nfrom ingest.prompts import load_prompts\n"
        f"import ingest.saes.refs, ingest.fingerprint\nload_prompts(load_recipe({str(file)!r}))\n"
        "assert not {'torch', 'transformers', 'sae_lens'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=RECIPES.parent)
