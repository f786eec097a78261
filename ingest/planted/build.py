"""Writes the planted study's model, SAEs and prompts: the files that are shipped, in seconds."""

import json
from pathlib import Path

from saelake.ingest.planted.network import write_network
from saelake.ingest.planted.prompts import planted_prompts
from saelake.ingest.planted.saes import write_saes


def build(folder: Path) -> None:
    """Writes model/, saes/ and prompts.jsonl into `folder`."""
    write_network(folder / "model")
    write_saes(folder)
    rows = "".join(json.dumps(row) + "\n" for row in planted_prompts())
    (folder / "prompts.jsonl").write_text(rows, encoding="utf-8")


if __name__ == "__main__":
    build(Path(__file__).parent)
