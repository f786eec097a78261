"""The names of the formats, without loading any: help lists them."""

from pathlib import Path

KNOWN = Path(__file__).parent / "known"


def names() -> list[str]:
    """All formats, by the files in known/."""
    return sorted(path.stem for path in KNOWN.glob("*.py") if path.stem != "__init__")
