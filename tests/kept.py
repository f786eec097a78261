"""A lake that took a minute to compute is kept for the next run of the tests, as long as nothing that it depends on has changed.

It lies in ~/.cache/saelake-tests, or in SAELAKE_TEST_CACHE; a new machine, and every change of the program, of a recipe or model
that is shipped, or of an installed package, computes it anew.
"""

import hashlib
import os
import platform
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from uuid import uuid4

import duckdb

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ("analysis", "cli.py", "commands", "formats", "ingest", "pyproject.toml", "queries", "recipes", "saelake", "warehouse")
PER_MACHINE = ("OMP_NUM_THREADS", "PYTHONPATH")
"""Variables of the environment that may decide a result, beside those of saelake."""


def kept(name: str, lake: Path, compute: Callable[[], object]) -> None:
    """Fills `lake` with what was kept under this name, or computes and keeps it; what was kept before goes."""
    cache = Path(os.environ.get("SAELAKE_TEST_CACHE") or Path.home() / ".cache" / "saelake-tests")
    found = cache / f"{name}-{_depends_on()}"
    if found.is_dir():
        shutil.copytree(found, lake)
        return
    try:
        compute()
    except BaseException:
        shutil.rmtree(lake, ignore_errors=True)  # another process that waits for it begins anew
        raise
    older = list(cache.glob(f"{name}-*"))
    draft = cache / f".{name}-{uuid4().hex}"
    shutil.copytree(lake, draft)
    if not found.exists():
        draft.rename(found)
    for one in older:
        shutil.rmtree(one, ignore_errors=True)


def _depends_on() -> str:
    """A hash of the program and all that is shipped with it, of every installed package, of this machine and its settings."""
    total = hashlib.sha256()
    files = [path for name in PROGRAM for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))]
    for file in sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts):
        total.update(f"{file.relative_to(ROOT)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    packages = sorted(f"{one.name}=={one.version}" for one in metadata.distributions())
    settings = sorted(f"{k}={v}" for k, v in os.environ.items() if k in PER_MACHINE or k.startswith(("SAELAKE", "HF_")))
    machine = [platform.node(), platform.machine(), platform.python_version(), str(os.cpu_count()), duckdb.__version__]
    total.update("\n".join([*packages, *settings, *machine]).encode())
    return total.hexdigest()[:16]
