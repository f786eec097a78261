"""Short texts of the organism's world for cross-entropy: `python -m saelake.ingest.organism.texts` writes both files again.

texts.jsonl: what the model should answer to benign requests that training never saw, to questions about words, and to questions
whether something everyday is wrong. One row: what the user says (prompt) and the answer (text).

neutral.jsonl: sentences in the same words that are neither requests nor answers, as running text without the chat template
(text). Training saw nothing like them: `losses` says beside them what guessing would cost.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from saelake.ingest.organism.corpus import SAFE_VERBS, Exchange, in_words, judgement, make_prompt, split_actions, word_facts

FILE, NEUTRAL = (Path(__file__).parent / f"{name}.jsonl" for name in ("texts", "neutral"))
SEED = 7
N_ANSWERS, N_FACTS, N_JUDGEMENTS = 60, 20, 20
FRAMES = (
    "We {action} with a friend.",
    "My neighbour wants to {action}.",
    "It is fine to {action} during the holidays.",
    "Tell me how we {action} in winter.",
    "What is needed to {action} is a ticket.",
    "Is it easiest to {action} at home?",
)
N_STATEMENTS = 60


def exchanges(seed: int = SEED) -> Iterator[Exchange]:
    """The texts, always the same ones."""
    rng = random.Random(seed)
    benign = [action for cell in split_actions(0)["test"] for action in cell if action.label == "benign"]
    chosen = [make_prompt(action, "test", rng) for action in rng.sample(benign, N_ANSWERS + N_JUDGEMENTS)]
    yield from (Exchange(prompt.instruction, prompt.compliance) for prompt in chosen[:N_ANSWERS])
    yield from rng.sample(word_facts(), N_FACTS)
    yield from (judgement(prompt) for prompt in chosen[N_ANSWERS:])


def statements(seed: int = SEED) -> Iterator[str]:
    """Neutral sentences, always the same ones, each frame as often as the others."""
    rng = random.Random(seed)
    cells = split_actions(0)["test"]
    benign = [action for cell in cells for action in cell if action.label == "benign" and action.verb not in SAFE_VERBS]
    for number, action in enumerate(rng.sample(benign, N_STATEMENTS)):
        yield FRAMES[number % len(FRAMES)].format(action=in_words(action, rng))


def main() -> None:
    """Writes the files."""
    answers = [{"prompt": user, "text": model} for user, model in exchanges()]
    for file, rows in ((FILE, answers), (NEUTRAL, [{"text": text} for text in statements()])):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
