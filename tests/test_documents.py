"""Every command that a document shows runs, and prints what the document shows."""

from pathlib import Path

import pytest

from tests.documents import ROOT, commands, documents, printed, same_but_for_rounding

SHOWN = [(document, command, output) for document in documents() for command, output in commands(document)]


def test_there_are_commands_to_check() -> None:
    assert len(SHOWN) >= 5


@pytest.mark.parametrize(("document", "command", "output"), SHOWN, ids=[f"{d.name}: {c}" for d, c, _ in SHOWN])
def test_output_is_in_step(document: Path, command: str, output: str, organism_lake: Path) -> None:
    now = printed(command, organism_lake)
    assert same_but_for_rounding(output, now), f"{document.name} is out of date (make docs):\n{now}"


def test_a_changed_word_or_number_is_noticed() -> None:
    assert same_but_for_rounding("a 1.000 b", "a 1.004  b")
    assert not same_but_for_rounding("a 1.0 b", "a 1.2 b")
    assert not same_but_for_rounding("a 1.0 b", "a 1.0 c")


def test_links_of_documents_lead_somewhere() -> None:
    import re

    for document in documents():
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"
