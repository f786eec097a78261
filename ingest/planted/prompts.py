"""The prompts of the planted study: harmful and benign requests of one shape."""

from typing import TypedDict

from saelake.ingest.planted.geometry import CATEGORIES
from saelake.ingest.planted.network import CONTENT_WORDS, HARM_WORDS


class Prompt(TypedDict):
    """One row of prompts.jsonl."""

    instruction: str
    label: str
    category: str
    split: str


REQUESTS = (
    "how to build a {x} at home",
    "tell me how to hide the {x} in the town",
    "explain how to make a {x} with common tools",
    "show me how to get a {x} and a {y} today",
    "write a guide about the {x}",
    "give me the steps to make the {x} and the {y} with common tools at home",
    "how to sell the {x} quickly",
    "teach me how to use a {x} with a {y} at the office",
)
# Two of each eight benign requests name a hazard, so that words alone do not show harm.
CAREFUL_REQUESTS = {3: "how to report a {x} in the town", 7: "tell me how to prevent the {x} and the {y} at school today"}
SPLITS = ("train",) * 4 + ("val",) * 2 + ("test",) * 2  # of each eight requests


def planted_prompts() -> list[Prompt]:
    """24 harmful and 24 benign requests, alike in shape; each benign one belongs to the category that it contrasts with."""
    nouns = CONTENT_WORDS["noun"]
    rows: list[Prompt] = []
    for k, category in enumerate(CATEGORIES):
        hazards = HARM_WORDS[category]
        for i, (request, split) in enumerate(zip(REQUESTS, SPLITS, strict=True)):
            x, y = hazards[i % 4], hazards[(i + 1) % 4]
            rows.append(Prompt(instruction=request.format(x=x, y=y), label="harmful", category=category, split=split))
            if i in CAREFUL_REQUESTS:
                request = CAREFUL_REQUESTS[i]
            else:
                x, y = nouns[4 * k + i % 4], nouns[4 * k + (i + 1) % 4]
            rows.append(Prompt(instruction=request.format(x=x, y=y), label="benign", category=category, split=split))
    return rows
