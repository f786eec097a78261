"""A feature's page on Neuronpedia is linked where the SAE is one that it has, and nowhere else."""

import duckdb
import pytest

from saelake.analysis.explorer.public import NEURONPEDIA, public_pages
from saelake.ingest.saes.labels import read_directory


def test_only_exactly_these_saes_have_a_page_elsewhere() -> None:
    pytest.importorskip("sae_lens")
    directory = read_directory()
    name = next(name for name in sorted(directory.places) if directory.source(name))
    with duckdb.connect() as con:
        con.execute("create table saes (sae_id varchar, name varchar)")
        con.executemany(
            "insert into saes values (?, ?)", [("a", f"{name}@1234"), ("b", "layer_0@sha256:12"), ("c", "no/such/sae")]
        )
        assert public_pages(con) == {"a": f"{NEURONPEDIA}/{directory.source(name)}"}
