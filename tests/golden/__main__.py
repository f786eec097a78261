"""Makes the golden lake of today's version of the schema again, beside its recipe.

python -m tests.golden            # the lake and its answers
python -m tests.golden answers    # the answers alone, for a question that is new
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import saelake
from saelake.analysis import verbs
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.check import check
from saelake.warehouse.lake import Lake
from saelake.warehouse.schema import SCHEMA_VERSION
from tests.golden import FOLDER, answers
from tests.planted import write_planted

OWN_FILES = ("catalog.duckdb", "landing", "locks")
"""What a lake keeps for itself, and makes again."""


def make(golden: Path) -> None:
    """Runs the recipe in a folder on the planted study: its analysis, its atlas, and an ablation of somebody's own."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder, "study")
        write_planted(study)
        recipe = load_recipe(Path(shutil.copy(golden / "recipe.toml", study / "golden.toml")))
        lake = Lake.create(Path(folder, "lake"))
        verbs.analyze(recipe, lake)
        verbs.atlas_study(verbs.open_analysis(recipe), lake)
        verbs.ablate(recipe, lake, "mine", [(2, 0), (4, 1)])
        assert not check(lake)
        for name in OWN_FILES:
            path = lake.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.rmtree(golden / "lake", ignore_errors=True)
        shutil.copytree(lake.root, golden / "lake")


def record(golden: Path) -> None:
    """Asks the lake in a folder all questions, and writes down what it answers."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(golden / "lake", Path(folder, "lake"))
        with saelake.open(Path(folder, "lake")) as opened:
            found = answers(opened)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(answer)}" for name, answer in found.items())
    (golden / "answers.json").write_text(f"{{\n{lines}\n}}\n", "utf-8")


if __name__ == "__main__":
    today = FOLDER / f"v{SCHEMA_VERSION}"
    if sys.argv[1:] != ["answers"]:
        make(today)
    record(today)
    sizes = [file.stat().st_size for file in today.rglob("*") if file.is_file()]
    print(f"tests/golden/v{SCHEMA_VERSION}: {len(sizes)} files, {sum(sizes):,} bytes")
