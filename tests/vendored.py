"""Fetches again what the static pages' library is made of, and makes it: `make vendored`.

    python -m tests.vendored            # into analysis/static_pages/vendored, with the versions that pins.json names

Packages come from npm, each held against the hash of its archive; esbuild joins the two into one file. Nothing of it runs when
saelake is installed: what ships is the file, which tests hold against the hash that pins.json gives.
"""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from saelake.analysis.static_pages.write import VENDORED

ENTRY = 'export { parquetReadObjects } from "hyparquet";\nexport { decompress } from "fzstd";\n'
"""What the pages use: Parquet's reader, and the codec of a lake's files."""
OPTIONS = ("--bundle", "--format=esm", "--minify", "--legal-comments=none", "--target=es2022", "--log-level=warning")


def made(pins: dict[str, dict[str, str]], folder: Path) -> bytes:
    """The library, made in an empty folder; raises ValueError for an archive that is not the pinned one."""
    (folder / "package.json").write_text("{}")
    packages = {name: pin for name, pin in pins.items() if "version" in pin}
    for name, pin in packages.items():
        npm(folder, "pack", f"{name}@{pin['version']}")
        digest = hashlib.sha256(archive(folder, name, pin).read_bytes()).hexdigest()
        if digest != pin["sha256"]:
            raise ValueError(f"{name} {pin['version']} has the hash {digest}, pins.json gives {pin['sha256']}")
    archives = [archive(folder, name, pin) for name, pin in packages.items()]
    npm(folder, "install", "--ignore-scripts", "--no-audit", "--no-fund", *(f"./{one.name}" for one in archives))
    (folder / "entry.js").write_text(ENTRY)
    told = ", ".join(f"{name} {pin['version']} ({pin['licence']})" for name, pin in pins.items() if "ships" in pin)
    banner = f"--banner:js=// {told}: their licences lie beside this file. Made by `make vendored`."
    words = [str(folder / "node_modules" / ".bin" / "esbuild"), "entry.js", *OPTIONS, banner, "--outfile=made.js"]
    subprocess.run(words, cwd=folder, check=True)
    return (folder / "made.js").read_bytes()


def npm(folder: Path, *words: str) -> None:
    environment = {**os.environ, "npm_config_update_notifier": "false"}
    subprocess.run(["npm", "--silent", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL, env=environment)


def archive(folder: Path, name: str, pin: dict[str, str]) -> Path:
    """Where npm puts a package's archive."""
    return folder / f"{name}-{pin['version']}.tgz"


def licence(packed: Path) -> str:
    """The text of the licence in a package's archive."""
    with tarfile.open(packed) as opened:
        found = opened.extractfile("package/LICENSE")
        assert found is not None
        return found.read().decode("utf-8")


def main() -> None:
    pins = json.loads((VENDORED / "pins.json").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as name:
        library = made(pins, Path(name))
        (VENDORED / "hyparquet.js").write_bytes(library)
        for package in (one for one, pin in pins.items() if "ships" in pin):
            text = licence(archive(Path(name), package, pins[package]))
            (VENDORED / f"{package}.LICENSE").write_text(text, "utf-8")
    digest = hashlib.sha256(library).hexdigest()
    print(f"hyparquet.js: {len(library):,} bytes, sha256 {digest}")
    if digest != pins["hyparquet.js"]["sha256"]:
        sys.exit(f"pins.json gives {pins['hyparquet.js']['sha256']}")


if __name__ == "__main__":
    main()
