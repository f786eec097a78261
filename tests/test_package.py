"""What is installed: one package and no other name, whole, and deaf to files of the user's own that have our folders' names."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling, which the extra dev installs, is missing")

ROOT = Path(__file__).resolve().parent.parent
BUILT = ("saelake/ingest/organism/", "saelake/ingest/hydra/", "saelake/ingest/laptop/", "saelake/ingest/planted/")
"""Where the modules that made the shipped models lie, and the adapter."""
HOSTILE = ("analysis", "cli", "commands", "formats", "ingest", "lake", "queries", "recipes", "warehouse")
DATA = (
    "py.typed",
    "cli.py",
    "analysis/served/pages/base.html",
    "analysis/report/page.html.jinja",
    "ingest/hydra/model/model.safetensors",
    "ingest/hydra/paths.safetensors",
    "ingest/hydra/prompts.jsonl",
    "ingest/hydra/saes/layer_7/sae_weights.safetensors",
    "ingest/laptop/adapter/adapter_config.json",
    "ingest/laptop/adapter/adapter_model.safetensors",
    "ingest/laptop/exchanges.jsonl",
    "ingest/laptop/passages.jsonl",
    "ingest/laptop/prompts.jsonl",
    "ingest/laptop/questions.jsonl",
    "ingest/organism/judgements.jsonl",
    "ingest/organism/model/model.safetensors",
    "ingest/organism/neutral.jsonl",
    "ingest/organism/prompts.jsonl",
    "ingest/organism/saes/layer_5/sae_weights.safetensors",
    "ingest/organism/texts.jsonl",
    "ingest/planted/model/model.safetensors",
    "ingest/planted/prompts.jsonl",
    "ingest/planted/saes/layer_5/sae_weights.safetensors",
    "queries/asr.sql",
    "queries/stages/fm_input.sql",
    "recipes/hydra.toml",
    "recipes/organism.toml",
    "recipes/planted.toml",
    "recipes/smollm2-refusal.toml",
    "warehouse/sharing/card.md.jinja",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and, by reference, what this one holds without our checkout."""
    where = tmp_path_factory.mktemp("environment")
    venv.create(where, symlinks=True)
    (wheel,) = built.glob("*.whl")
    python = where / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=where)
    (packages,) = where.glob("lib/*/site-packages")
    assert {path.name.split("-")[0] for path in packages.iterdir()} == {"saelake"}
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files are not read
    return python.parent


def run(*command: object, cwd: Path, **variables: str) -> str:
    """What a command prints, without our checkout on the path."""
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=given, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_holds_one_package_with_what_a_user_needs(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"saelake"}
    assert not [name for name in DATA if f"saelake/{name}" not in names]
    sources = ("analysis", "commands", "formats", "ingest", "queries", "recipes", "warehouse")
    ours = {f"saelake/{path.relative_to(ROOT)}" for folder in sources for path in (ROOT / folder).rglob("*")}
    makers = {name for name in ours if name.startswith(BUILT) and name.endswith((".py", "gates.json"))}
    assert len(makers) > 10
    assert not makers & set(names)
    expected = {name for name in ours - makers if (ROOT / name.removeprefix("saelake/")).is_file() and "__pycache__" not in name}
    assert not expected - set(names)
    assert not [name for name in names if "test" in name or "benchmark" in name or name.startswith("docs")]


def test_a_source_distribution_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (sources,) = built.glob("*.tar.gz")
    with tarfile.open(sources) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
        top = {"/".join(name.split("/")[1:2]) for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    assert top <= {"saelake", "README.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}
    (folder,) = tmp_path.iterdir()
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again"], cwd=folder, check=True)
    (wheel,), (again,) = built.glob("*.whl"), (tmp_path / "again").glob("*.whl")
    assert wheel.read_bytes() == again.read_bytes()


def test_an_installation_works_beside_files_of_the_users_with_our_folders_names(installed: Path, tmp_path: Path) -> None:
    for name in HOSTILE:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the {name}.py of the user was imported')")
    said = run(installed / "saelake", "--help", cwd=tmp_path)
    assert run(installed / "python", "-m", "saelake", "--help", cwd=tmp_path, PYTHONPATH=str(tmp_path)) == said
    run(installed / "saelake", "ingest", "organism", "--limit", "1", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    count = ("sql", "select count(*) as n from prompts", "--format", "csv")
    assert run(installed / "saelake", *count, cwd=tmp_path).split() == ["n", "6"]
    assert run(installed / "python", "-m", "saelake", *count, cwd=tmp_path).split() == ["n", "6"]
    assert "critical_features" in run(installed / "saelake", "queries", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert "sound" in run(installed / "saelake", "check", cwd=tmp_path)
