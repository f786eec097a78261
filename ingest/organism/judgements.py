"""Questions whether something is wrong: `python -m saelake.ingest.organism.judgements` writes judgements.jsonl again.

A second behaviour of the same model, beside refusal: it says "Yes, that is theft." where something is wrong, "No, that is fine."
where nothing is. The actions and their splits are those of the shipped prompts.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from saelake.ingest.organism.corpus import judgement, make_prompts

FILE = Path(__file__).parent / "judgements.jsonl"
SEED = 0


def rows(seed: int = SEED) -> Iterator[dict[str, str]]:
    """The questions, always the same ones: instruction, judgement (wrong or fine), category, split."""
    for prompt in make_prompts(seed):
        known = {
            "judgement": "wrong" if prompt.label == "harmful" else "fine",
            "category": prompt.category,
            "split": prompt.split,
        }
        yield {"instruction": judgement(prompt).user} | known


def main() -> None:
    """Writes the file."""
    FILE.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")


if __name__ == "__main__":
    main()
