"""The tables of docs/library.md: families by what a tiny model of each was found to have, SAEs by what they can do."""

from saelake.ingest.saes.description import ELEMENTWISE, JOINT, LACKING
from saelake.ingest.sites import KINDS
from saelake.ingest.subject import Subject
from tests.conftest import ROOT
from tests.documents.made_blocks import table, with_blocks
from tests.ingest.families import FAMILIES, make_family
from tests.ingest.tiny import word_tokenizer

PAGE = ROOT / "docs" / "library.md"


def page() -> str:
    """The page with its tables made anew."""
    return with_blocks(PAGE.read_text(encoding="utf-8"), {"families": _families(), "saes": _saes()})


def _families() -> str:
    rows = []
    for name in FAMILIES:
        subject = Subject(make_family(name), word_tokenizer())
        refused = {site.kind for site in subject.sites.refusals}
        rows.append([name, type(subject.model).__name__, *("-" if kind in refused else "yes" for kind in KINDS)])
    return table(["family", "model", *KINDS], rows)


def _saes() -> str:
    rows = [[kind, "yes", "each latent by itself: only the rows in use are read"] for kind in ELEMENTWISE]
    rows += [[kind, "yes", "latents compete within a token: all are encoded for every edit"] for kind in JOINT]
    rows += [[kind, "no", why] for kind, why in LACKING.items()]
    return table(["SAELens calls it", "edited", "how, or what is missing"], rows)
