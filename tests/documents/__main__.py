"""Writes what documents show.

python -m tests.documents LAKE PLANTED        # runs everything on these lakes and writes the output into the documents
python -m tests.documents                     # the pages that are made from code alone
"""

import re
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests import test_contributing
from tests.documents import (
    BLOCK,
    block_of,
    by_k,
    cards_page,
    comparison_page,
    documents,
    formats_page,
    library_page,
    prepare,
    printed,
    programs,
    protocol_page,
    recipe_page,
    replication_page,
)
from tests.forked import Forks


def pages() -> None:
    """Writes the pages that are made from code alone."""
    for made in (protocol_page, recipe_page, library_page, formats_page, cards_page, comparison_page):
        made.PAGE.write_text(made.page(), encoding="utf-8")


def main(lake: Path, planted: Path) -> None:
    """Brings all documents up to date."""
    pages()
    by_k.PICTURE.write_text(by_k.picture(lake), encoding="utf-8")
    found = replication_page.page(replication_page.PAGE.read_text(encoding="utf-8"), lake)
    replication_page.PAGE.write_text(found, encoding="utf-8")
    test_contributing.main(planted)
    with tempfile.TemporaryDirectory() as hub, programs(Path(hub)) as running:
        for document in documents():
            with tempfile.TemporaryDirectory() as folder:
                prepare(Path(folder), lake, planted)
                renewed = BLOCK.sub(partial(_renewed, Path(folder), running), document.read_text(encoding="utf-8"))
                document.write_text(renewed, encoding="utf-8")


def _renewed(folder: Path, running: Forks, found: re.Match[str]) -> str:
    block = block_of(found)
    return block.written(printed(block, folder, running))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:])) if sys.argv[1:] else pages()
