"""How a bucket is reached: as anybody, with given keys, by a profile, and what is said where it is not."""

import sys
from pathlib import Path

import pytest

import saelake
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.warehouse import toys

pytest.importorskip("obstore", reason="the extra s3 is not installed")


@pytest.fixture
def lake(bucket: str) -> Lake:
    return Lake.create(f"{bucket}/team/lake")


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose environment holds no keys; its configuration of AWS, which is empty."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path / "config"


def test_a_bucket_is_asked_as_anybody_may_only_when_that_is_said(
    lake: Lake, no_keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no credentials for s3://.*AWS_SKIP_SIGNATURE=true"):
        Lake.existing(str(lake))
    monkeypatch.setenv("AWS_PROFILE", "misspelt")
    with pytest.raises(UserError, match=r"no credentials for s3://.*misspelt.*see AWS_PROFILE"):
        Lake.existing(str(lake))
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with pytest.raises(UserError, match=r"cannot read s3://.*403 Forbidden"):
        Lake.existing(str(lake))
    monkeypatch.delenv("AWS_SKIP_SIGNATURE")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # who gives keys needs no profile
        monkeypatch.setenv(name, "testing")
    assert Lake.existing(str(lake)).run_ids() == []


def test_a_profile_whose_keys_expire_opens_a_lake_and_is_asked_again(
    lake: Lake, no_keys: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Roles and single sign-on come through the same door as the profile's program here; its keys hold for a minute."""
    program = tmp_path / "keys.py"
    program.write_text(
        "import datetime, json, pathlib\n"
        f"asked = pathlib.Path({str(tmp_path / 'asked')!r})\n"
        "asked.write_text((asked.read_text() if asked.exists() else '') + 'x')\n"
        "until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)\n"
        "n = len(asked.read_text())\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'key{n}', 'SecretAccessKey': 's', 'SessionToken': f'token{n}',"
        " 'Expiration': until.isoformat()}))\n"
    )
    no_keys.write_text(f"[profile lab]\nregion = eu-central-1\ncredential_process = {sys.executable} {program}\n")
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    toys.ingest(lake)
    with saelake.open(str(lake)) as opened:
        assert opened.sql("select count(*) from prompts").fetchall() != [(0,)]
        (before,) = opened.sql("select secret_string from duckdb_secrets()").fetchall()
        assert opened.sql("select count(*) from tokens").fetchall() != [(0,)]
        (after,) = opened.sql("select secret_string from duckdb_secrets()").fetchall()
    assert "region=eu-central-1" in before[0]
    assert before != after, "DuckDB has the keys that are valid now"
