"""make pictures: a picture of each of the explorer's pages, into docs/pictures/, from a lake of the embedded study.

python -m tests.documents.pictures LAKE
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import saelake
from tests.conftest import ROOT
from tests.meaning import chromium

FOLDER = ROOT / "docs" / "pictures"
SIZE = {"width": 1200, "height": 800}
NARROW = {"width": 390, "height": 800}
FEATURE = "5/177"
"""The feature that most minimal sets of the embedded study hold."""


@contextmanager
def explorer(lake: str) -> Iterator[str]:
    """The explorer of the embedded study with its subject loaded: its link."""
    command = [sys.executable, "-m", "saelake.cli", "browse", "--port", "0", "--live", "organism", "--lake", lake]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            printed = re.search(r"http://\S+", process.stdout.readline())
            assert printed is not None, "the server printed no link"
            yield printed[0]
        finally:
            process.terminate()


def pages(lake: str) -> dict[str, str]:
    """Name of a picture -> what follows the link."""
    with saelake.open(lake, "organism") as opened:
        prompt = opened.query("first_prompt").fetchall()[0][0]
        run = opened.sql("select run_id from runs where stage = 'minimal'").fetchall()[0][0]
    return {
        "features": "",
        "feature": f"/{FEATURE}",
        "prompts": "/prompts",
        "prompt": f"/prompts/{prompt}?feature=5:177&pos=3",
        "conditions": "/conditions",
        "condition": "/conditions/top_k_own?label=benign",
        "runs": "/runs",
        "run": f"/runs/{run}",
        "sql": "/sql",
        "live": f"/live?prompt_id={prompt}",
    }


def main() -> None:
    (lake,) = sys.argv[1:]
    FOLDER.mkdir(exist_ok=True)
    with explorer(lake) as link, chromium() as browser:
        for scheme, size, suffix in (("light", SIZE, ""), ("dark", NARROW, "-narrow")):
            page = browser.new_context(viewport=size, color_scheme=scheme).new_page()  # type: ignore[arg-type]
            for name, path in pages(lake).items():
                if suffix and name not in ("feature", "live"):
                    continue
                page.goto(link + path)
                if name == "sql":
                    page.get_by_role("button", name="Ask").click()
                    page.wait_for_selector("table.rows")
                if name == "live":
                    page.wait_for_selector("#fired table", state="attached")
                    for feature in ("5:177", "4:256"):
                        page.get_by_role("button", name=f"Switch {feature} off").last.click()
                    page.wait_for_timeout(3_000)  # what it answers is told token by token
                page.screenshot(path=FOLDER / f"{name}{suffix}.png")


if __name__ == "__main__":
    main()
