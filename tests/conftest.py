"""Fixtures that several test files share."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.request import Request, urlopen
from uuid import uuid4

import duckdb
import pytest

from saelake.warehouse.durable import locked
from tests.kept import kept

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches the hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes test as there are cores
os.fsync = lambda fd: None  # no test cuts the power, which is all that writing through is for

MOST_MEMORY = 12 << 30
"""Bytes of its own that a process of tests may hold."""
SLOW = (
    "tests/queries/test_spark.py",
    "tests/test_documents.py",
    "tests/explorer/test_in_browser.py",
    "tests/analysis/test_workers.py",
    "tests/explorer/test_static_in_browser.py",
    "tests/analysis/test_pages.py",
    "tests/analysis/test_search_on_planted.py",
    "tests/analysis/test_shards.py",
    "tests/analysis/test_several_saes.py",
    "tests/explorer/test_static_pages.py",
    "tests/analysis/test_rows_dataset.py",
    "tests/test_real_formats.py",
    "tests/analysis/test_retrained.py",
    "tests/test_kill.py",
    "tests/formats/test_formats.py",
    "tests/analysis/test_labels.py",
    "tests/warehouse/test_hostile_sets.py",
    "tests/warehouse/test_torture.py",
    "tests/test_contributing.py",
    "tests/formats/test_heavy_sources.py",
    "tests/warehouse/test_bucket.py",
    "tests/warehouse/test_heavy_sets.py",
    "tests/test_attach.py",
    "tests/warehouse/test_killed.py",
    "tests/test_package.py",
    "tests/warehouse/test_round_trip.py",
    "tests/test_encodings.py",
    "tests/test_notebook.py",
    "tests/test_growth.py",
)
"""The files that take longest, which `make test` leaves to `make test-slow`: whole studies and documents, other programs (Java,
Chromium, Ray, pip), killed processes, hostile data sets.

They begin in this order, so that no process is left alone with a long one at the end. How the others stay quick: a module
analyses one study, once, on the fewest prompts that can show the fault (a stage takes most of its time however few they are), and
a command runs in this process unless the test is of processes.
"""


def pytest_configure(config: pytest.Config) -> None:
    """A test that would fill the memory fails itself, and does not take the others with it."""
    config.addinivalue_line("markers", "slow: of a file that takes long (SLOW in tests/conftest.py)")
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = MOST_MEMORY if hard == resource.RLIM_INFINITY else min(MOST_MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@pytest.hookimpl(tryfirst=True)  # before those that -m leaves out are
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files, then one that makes the lake of the embedded study, and those that wait for a lake at the end."""
    assert all((ROOT / name).is_file() for name in SLOW)
    quick = [item for item in items if item.path.relative_to(ROOT).as_posix() not in SLOW]
    waiting = {item.path for item in quick if {"organism_lake", "planted_lake"} & set(getattr(item, "fixturenames", ()))}
    maker = next((item.path for item in quick if "organism_lake" in getattr(item, "fixturenames", ())), None)

    def turn(item: pytest.Item) -> int:
        name = item.path.relative_to(ROOT).as_posix()
        if name in SLOW:
            return SLOW.index(name)
        return len(SLOW) + (0 if item.path == maker else 2 if item.path in waiting else 1)

    items.sort(key=turn)
    for item in items:
        if turn(item) < len(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def organism_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake that `saelake analyze organism` makes, once for all tests and test processes; do not change it."""
    return made_once("organism", ("analyze",), tmp_path_factory)


@pytest.fixture(scope="session")
def planted_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake that `saelake analyze planted`, `saelake atlas planted` and `saelake audit planted` make, in the same way."""
    return made_once("planted", ("analyze", "atlas", "audit"), tmp_path_factory)


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder that processes which test side by side share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(study: str, commands: tuple[str, ...], factory: pytest.TempPathFactory) -> Path:
    """Of two processes that ask for a lake, one makes it, or finds it where an earlier run has kept it, and one waits."""
    lake = shared_folder(factory) / study / "lake"
    words = [sys.executable, "-c", IN_TURN, *commands, study, "--lake", str(lake)]
    with locked(lake.parent.with_suffix(".lock")):
        if not lake.exists():
            kept(study, lake, lambda: subprocess.run(words, cwd=ROOT, check=True, capture_output=True))
    return lake


IN_TURN = """
import sys
from saelake.cli import main
*commands, study, option, lake = sys.argv[1:]
for command in commands:
    assert not main([command, study, option, lake], standalone_mode=False)
"""
"""Commands one after the other: what all of them import takes as long as some of them."""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server on loopback: its address."""
    for package in ("obstore", "duckdb_extension_httpfs"):
        pytest.importorskip(package, reason="the extra s3 is not installed")
    extension = find_spec("duckdb_extension_httpfs")
    assert extension is not None
    assert extension.origin is not None
    if not (Path(extension.origin).parent / "extensions" / f"v{duckdb.__version__}").is_dir():
        pytest.skip(f"there is no duckdb-extension-httpfs for DuckDB {duckdb.__version__} here")
    moto_server = pytest.importorskip("moto.server", reason="moto, which the extra dev installs, is missing")
    running = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A new bucket, and the environment that reaches it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    known = {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "it's secret", "REGION": "eu-central-1"}
    for name, value in known.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("SAELAKE_WORK", str(tmp_path / "work"))
    name = f"lake-{uuid4().hex}"
    urlopen(Request(f"{s3_server}/{name}", method="PUT"))
    return f"s3://{name}"
