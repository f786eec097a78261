"""Short texts of the organism's world for cross-entropy: `python -m saelake.ingest.organism.texts` writes texts.jsonl again.

What the model should answer to benign requests that training never saw, to questions about words, and to questions whether
something everyday is wrong. One row: what the user says (prompt) and the answer (text).
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from saelake.ingest.organism.corpus import Exchange, judgement, make_prompt, split_actions, word_facts

FILE = Path(__file__).parent / "texts.jsonl"
SEED = 7
N_ANSWERS, N_FACTS, N_JUDGEMENTS = 60, 20, 20


def exchanges(seed: int = SEED) -> Iterator[Exchange]:
    """The texts, always the same ones."""
    rng = random.Random(seed)
    benign = [action for cell in split_actions(0)["test"] for action in cell if action.label == "benign"]
    chosen = [make_prompt(action, "test", rng) for action in rng.sample(benign, N_ANSWERS + N_JUDGEMENTS)]
    yield from (Exchange(prompt.instruction, prompt.compliance) for prompt in chosen[:N_ANSWERS])
    yield from rng.sample(word_facts(), N_FACTS)
    yield from (judgement(prompt) for prompt in chosen[N_ANSWERS:])


def main() -> None:
    """Writes the file."""
    rows = [{"prompt": user, "text": model} for user, model in exchanges()]
    FILE.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
