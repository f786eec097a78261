"""What must hold before a release: `make release-check`, or

    python -m tests.release [PYTHON ...]        # these interpreters beside those that are found

A wheel and a source distribution are built, twice and byte for byte alike. What is in them names no machine, holds no secret, and
is under one licence, but for what THIRD_PARTY says. The wheel alone is installed on every Python that is found, with each DuckDB,
and reads the golden lakes. What could not be tried is named.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from tests.conftest import ROOT

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
DUCKDBS = ("1.5.5", "2.0.1")
THIRD_PARTY = {
    "saelake/analysis/judges/named/phrases.py": "twelve phrases of andyrdt/refusal_direction (Arditi et al. 2024), Apache-2.0",
    "saelake/analysis/static_pages/vendored/hyparquet.js": "hyparquet and fzstd, MIT; pins.json names their versions and hashes",
}
"""File -> what in it is not ours."""
FREE = re.compile(r"apache|mit|bsd|isc|mpl|psf|python software foundation|zlib|unlicense", re.IGNORECASE)
"""Licences that what saelake needs may have: none asks anything of a lake or of a user's program."""
PATHS = re.compile(r"(?<![\w.:/-])/(?:home|root|Users|mnt|work|workspace|scratch|tmp(?!/ray))/[\w.-]+")
SECRETS = re.compile(
    r"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{24,}|AKIA[0-9A-Z]{16}|xox[abp]-[\w-]{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|(?i:password|secret|token|api_key)\s*=\s*[\"'][A-Za-z0-9+/_-]{20,}[\"']"
)
COPYRIGHT = re.compile(r"copyright (?:\(c\)|©|\d{4})|SPDX-License|@license|all rights reserved", re.IGNORECASE)
ASKED = """
import shutil, sys, saelake
from saelake.warehouse.check import check
from saelake.warehouse.lake import Lake
for golden in sys.argv[1:]:
    with saelake.open(golden) as lake:
        assert lake.sql("select count(*) from activations").fetchall()[0][0] > 0
        assert lake.query("asr").fetchall()
        assert lake.sparse(layer=4)[0].nnz
    assert not check(Lake.existing(golden))
assert "torch" not in sys.modules
"""


class Failed(Exception):
    """One thing that must not be released."""


def built(folder: Path) -> tuple[Path, Path]:
    """A wheel and a source distribution, built once more to see that they come out alike."""
    for again in ("one", "two"):
        run(sys.executable, "-m", "hatchling", "build", "-d", folder / again, cwd=ROOT)
    files = sorted((folder / "one").iterdir())
    if [f.read_bytes() for f in files] != [f.read_bytes() for f in sorted((folder / "two").iterdir())]:
        raise Failed("two builds differ")
    sources, wheel = files
    return wheel, sources


def contents(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The files in a wheel or a source distribution, by their names in it."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            yield from ((name, opened.read(name)) for name in opened.namelist())
    else:
        with tarfile.open(archive) as opened:
            for member in opened:
                if (found := opened.extractfile(member)) is not None:
                    yield member.name.partition("/")[2], found.read()


def repository() -> Iterator[tuple[str, bytes]]:
    """The files of the repository that git knows."""
    listed = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    yield from ((name, (ROOT / name).read_bytes()) for name in listed if name and (ROOT / name).is_file())


def leaks(name: str, content: bytes) -> list[str]:
    """Paths of a machine, keys, and marks of another's copyright in a file."""
    text = content.decode("utf-8", "replace")
    found = [f"{name}: the path {one}" for one in PATHS.findall(text)] if not name.startswith("tests/") else []
    found += [f"{name}: what looks like a key: {one[:12]}..." for one in SECRETS.findall(text)]
    is_ours = name.endswith(("LICENSE", "tests/release.py")) or name in THIRD_PARTY
    found += [] if is_ours else [f"{name}: {one}: is it ours?" for one in COPYRIGHT.findall(text)]
    return found


def licences() -> dict[str, str]:
    """What saelake needs, without extras -> its licence, as it says itself."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    found = {}
    for name in (re.split(r"[><=\[;]", one)[0] for one in needed):
        about = metadata.metadata(name).json
        classified = [c.rpartition("::")[2].strip() for c in about.get("classifier", []) if c.startswith("License ::")]
        found[name] = str(about.get("license_expression") or ", ".join(classified) or about.get("license", "not said"))
    return found


def interpreters(given: list[str]) -> dict[str, str]:
    """Version -> the interpreter of each of PYTHONS that is found: given, on the path, or put there by pyenv or uv."""
    homes = [Path.home() / ".pyenv" / "versions", Path.home() / ".local" / "share" / "uv" / "python"]
    placed = [str(one) for home in homes for one in sorted(home.glob("*/bin/python3"))]
    found: dict[str, str] = {}
    for candidate in (*given, sys.executable, *(shutil.which(f"python{version}") or "" for version in PYTHONS), *placed):
        try:
            told = run(candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])", cwd=ROOT).strip()
        except (OSError, Failed):  # a shim without its Python
            continue
        if told in PYTHONS:
            found.setdefault(told, candidate)
    return dict(sorted(found.items()))


def installed(wheel: Path, python: str, duckdb: str, folder: Path) -> None:
    """Installs the wheel alone beside a DuckDB, and reads the golden lakes with it."""
    run(python, "-m", "venv", folder / "venv", cwd=folder)
    inside = folder / "venv" / "bin" / "python"
    run(inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, f"duckdb=={duckdb}", cwd=folder)
    lakes = []
    for version in sorted((ROOT / "tests" / "golden").glob("v*")):
        lakes.append(Path(shutil.copytree(version / "lake", folder / version.name)))
    run(inside, "-c", ASKED, *lakes, cwd=folder)
    for words in (["--version"], ["queries"], ["query", "asr", "--lake", lakes[-1]], ["report", "--lake", lakes[-1]]):
        run(folder / "venv" / "bin" / "saelake", *words, cwd=folder)


def run(*command: object, cwd: Path, **variables: str) -> str:
    """What a command prints, without our checkout on the path; raises Failed with what it says if it fails."""
    given: Mapping[str, str] = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command[:6]))}: {(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


def main(given: list[str]) -> None:
    """Says what was checked, line by line; ends with 1 at the first thing that must not be released."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sources = built(folder)
        print(
            f"built twice alike: {wheel.name} ({wheel.stat().st_size:,} bytes), {sources.name} ({sources.stat().st_size:,} bytes)"
        )
        for what, files in (
            ("the wheel", contents(wheel)),
            ("the source distribution", contents(sources)),
            ("git", repository()),
        ):
            found_leaks = [leaks(one, content) for one, content in files]
            if wrong := [leak for of_file in found_leaks for leak in of_file]:
                raise Failed("\n".join(wrong))
            print(f"{what}: {len(found_leaks):,} files, no path of a machine, no key, no copyright but ours or listed")
        for file, told in THIRD_PARTY.items():
            print(f"not ours in {file}: {told}")
        found_licences = licences()
        if odd := {package: licence for package, licence in found_licences.items() if not FREE.search(licence)}:
            raise Failed(f"licences to be looked at: {odd}")
        print("licences of what is needed: " + "; ".join(f"{package} {licence}" for package, licence in found_licences.items()))
        found = interpreters(given)
        for version, python in found.items():
            for duckdb in DUCKDBS:
                where = folder / f"{version}-{duckdb}"
                where.mkdir()
                installed(wheel, python, duckdb, where)
                print(f"installed and read the golden lakes: Python {version}, DuckDB {duckdb}", flush=True)
                shutil.rmtree(where)
        print(f"not found here, and not tried: Python {', '.join(v for v in PYTHONS if v not in found) or 'none'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Failed as failed:
        sys.exit(f"not to be released: {failed}")
