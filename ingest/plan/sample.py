"""A small sample of a study, really computed and really written, from which rows and bytes of the whole are estimated."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from saelake.ingest.capture import capture, nonzeros
from saelake.ingest.prompts import Prompt
from saelake.ingest.recipe import Recipe
from saelake.ingest.saes.description import read_description
from saelake.ingest.saes.refs import list_saes
from saelake.ingest.saes.sae import check_fits, load_sae
from saelake.ingest.subject import Subject
from saelake.warehouse.content import ContentHash
from saelake.warehouse.landing import repeated
from saelake.warehouse.layout import write_table
from saelake.warehouse.schema import ACTIVATIONS

SAMPLE_PROMPTS = 160


class Sample(NamedTuple):
    """What a sample of prompts gives."""

    n_prompts: int
    rows_per_token: float
    """Non-zero activations a token, over all layers."""
    bytes_per_row: float
    """Of published `activations`."""


def measure(recipe: Recipe, prompts: list[Prompt], token_ids: list[list[int]]) -> Sample:
    """Captures some of the prompts, spread over the study, and writes them as publishing would."""
    chosen = np.unique(np.linspace(0, len(prompts) - 1, min(SAMPLE_PROMPTS, len(prompts))).round().astype(int)).tolist()
    subject = Subject.load(recipe.model, recipe.compute)
    refs = list_saes(recipe)
    tokens = [token_ids[i] for i in chosen]
    reads = {ref.sae_id: read_description(ref).reads for ref in refs}
    captured = capture(subject, tokens, list(dict.fromkeys(reads.values())), recipe.capture.batch_tokens)
    lengths = [len(tokens[i]) for i in captured.order]
    prompt_of_token = np.repeat(np.array(captured.order), lengths)
    pos_of_token = np.concatenate([np.arange(n, dtype=np.int16) for n in lengths])
    n_rows = n_bytes = 0
    with tempfile.TemporaryDirectory() as folder:
        for ref in refs:
            sae = load_sae(ref, subject.device)
            check_fits(sae, subject)
            found = nonzeros(sae, captured.resid[reads[ref.sae_id]], to_bfloat16=recipe.capture.round == "bfloat16")
            prompt, pos = prompt_of_token[found.token], pos_of_token[found.token]
            order = np.lexsort((pos, prompt, found.feature_id))
            columns = {
                "run_id": repeated("ingest", len(order)),
                "sae_id": repeated(ref.sae_id, len(order)),
                "layer": np.full(len(order), ref.layer, dtype=np.int16),
                "feature_id": found.feature_id[order],
                "prompt_id": prompt[order].astype(np.int64),
                "pos": pos[order],
                "activation": found.activation[order],
            }
            rows = pa.table({name: columns[name] for name in ACTIVATIONS.schema.names}).to_batches()
            written, size, _ = write_table(Path(folder, "rows.parquet"), "activations", rows, ContentHash(ACTIVATIONS.schema))
            n_rows, n_bytes = n_rows + written, n_bytes + size
    return Sample(len(chosen), n_rows / sum(lengths), n_bytes / max(n_rows, 1))
