"""Where others show a feature: the source by which Neuronpedia calls an SAE, by SAELens' directory."""

import re
from importlib.util import find_spec

import duckdb

NEURONPEDIA = "https://www.neuronpedia.org"
SOURCE = re.compile(r"[\w.-]+/[\w.-]+")


def public_pages(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """sae_id -> what the addresses of its features' pages begin with, for those of the study's SAEs that Neuronpedia has."""
    named = [(sae_id, name) for sae_id, name in con.execute("select sae_id, name from saes").fetchall() if "/" in name]
    if not named or not find_spec("sae_lens"):
        return {}
    from saelake.ingest.saes.labels import read_directory

    directory = read_directory()
    sources = {sae_id: directory.source(name) for sae_id, name in named}
    return {sae_id: f"{NEURONPEDIA}/{source}" for sae_id, source in sources.items() if source and SOURCE.fullmatch(source)}
