"""A lake's parts, as keys: how records, pointers and folders of data are named.

lake/
  saelake.json                    marks the folder as a lake, with the newest version of the protocol in it
  runs/<run_id>.json              the record of a published run: the commit point, written last
  data/<run_id>/<table>/*.parquet the files that the record lists
  current/<recipe>/<stage>        which runs of a recipe's stage are current, one per line: most stages have one
  landing/<run_id>/               shards of a run that is being computed
  studies/<name>/                 an annotation study and the append log of its answers, until it is closed; its links are secret
  replies/<judge>.jsonl           what judges behind endpoints have replied, for the lake's owner alone
  locks/                          locks of living processes
  catalog.duckdb                  views for any DuckDB client

A name that starts with a dot is a draft: nobody but its writer reads it. Of a lake on S3 the first four lie below its prefix,
the others in a working folder of this machine.
"""

import re

from saelake.warehouse.errors import UserError

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,120}")
"""What a study or a stage may be called: both are names of folders or files."""


def check_study_name(name: str) -> None:
    """Raises UserError for what no study may be called."""
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a name for a study: use letters, digits, ., - and _, a letter first")


def record_key(run_id: str) -> str:
    return f"runs/{run_id}.json"


def pointer_key(recipe: str, stage: str) -> str:
    return f"current/{recipe}/{stage}"


def pointed(text: str) -> tuple[str, ...]:
    """The runs that a pointer's text names."""
    return tuple(line.strip() for line in text.strip().split("\n"))


def data_key(folder: str) -> str:
    return f"data/{folder}"


def run_of_folder(name: str) -> str:
    """The run that a folder of `data/` or `landing/` belongs to: `run`, `run-2`, `run.again`, or a draft `.run.1a2b3c4d`."""
    name = name[1:].rsplit(".", 1)[0] if name.startswith(".") else name
    return re.sub(r"-[0-9a-f]+$", "", name.removesuffix(".again"))
