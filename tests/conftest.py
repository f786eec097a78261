"""Fixtures that several test files share."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.request import Request, urlopen
from uuid import uuid4

import duckdb
import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches the hub


@pytest.fixture(scope="session")
def organism_lake(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The lake that `saelake analyze organism` makes, once for all tests and test processes; do not change it."""
    base = tmp_path_factory.getbasetemp()
    # Processes that test side by side share the folder above theirs; of two that ask for a run, one computes and one waits.
    lake = (base if worker_id == "master" else base.parent) / "organism" / "lake"
    command = [sys.executable, "-m", "saelake.cli", "analyze", "organism", "--lake", str(lake)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return lake


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
