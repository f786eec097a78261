"""The rows of an ingest run: one shard about the SAEs, one for every slice of the prompts."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ingest.capture import nonzeros, residuals
from ingest.job import Study, prompt_ids
from ingest.saes import Sae, check_fits, load_sae
from ingest.subject import Subject, Tokenized
from warehouse.records import RunSpec
from warehouse.runs import Rows


class ShardMaker:
    """Holds the subject and its SAEs, checked against each other, and makes shards of rows.

    Raises UserError, before any forward pass, for a prompt over the limit or an SAE that does not fit the model.
    """

    def __init__(self, study: Study, spec: RunSpec) -> None:
        self._study = study
        self._prompt_ids = prompt_ids(spec, len(study.prompts))
        self._subject = Subject.load(study.recipe.model, study.recipe.compute)
        self._tokenized = [self._subject.encode(p.text) for p in study.prompts]
        self._saes = {ref.layer: load_sae(ref, self._subject.device) for ref in study.saes}
        for sae in self._saes.values():
            check_fits(sae, self._subject)

    def saes(self) -> list[Rows]:
        """`saes` and `features`, without the statistics that publishing adds."""
        table = {
            "sae_id": [s.ref.sae_id for s in self._saes.values()],
            "name": [s.ref.name for s in self._saes.values()],
            "layer": pa.array(list(self._saes), pa.int16()),
            "width": pa.array([s.width for s in self._saes.values()], pa.int32()),
            "hook": [f"blocks.{layer}.hook_resid_post" for layer in self._saes],
            "norm": [s.norm for s in self._saes.values()],
            "declared_l0": pa.array([s.ref.declared_l0 for s in self._saes.values()], pa.float32()),
        }
        return [Rows("saes", pa.table(table)), *(self._features(layer, sae) for layer, sae in self._saes.items())]

    def _features(self, layer: int, sae: Sae) -> Rows:
        columns = {
            "sae_id": _constant(sae.ref.sae_id, sae.width),
            "layer": np.full(sae.width, layer, dtype=np.int16),
            "feature_id": np.arange(sae.width, dtype=np.int32),
            "decoder_norm": sae.W_dec.norm(dim=1).cpu().numpy(),
            "threshold": sae.threshold.cpu().numpy(),
        }
        return Rows("features", pa.table(columns), layer)

    def prompts(self, rows: range) -> list[Rows]:
        """`prompts`, `tokens` and `activations` of a slice of the study's prompts."""
        tokenized = self._tokenized[rows.start : rows.stop]
        prompt_id = self._prompt_ids[rows.start : rows.stop]
        return [
            self._prompt_table(rows, prompt_id, tokenized),
            _token_table(prompt_id, tokenized),
            *self._activations(prompt_id, tokenized),
        ]

    def _prompt_table(self, rows: range, prompt_id: np.ndarray, tokenized: Sequence[Tokenized]) -> Rows:
        prompts = self._study.prompts[rows.start : rows.stop]
        columns = {
            "prompt_id": prompt_id,
            "prompt_hash": [p.prompt_hash for p in prompts],
            "set": [p.set for p in prompts],
            "split": [p.split for p in prompts],
            "label": [p.label for p in prompts],
            "category": pa.array([p.category for p in prompts], pa.string()),
            "text": [p.text for p in prompts],
            "n_tokens": pa.array([len(t.token_ids) for t in tokenized], pa.int32()),
            "template_hash": [self._subject.template_hash] * len(prompts),
        }
        return Rows("prompts", pa.table(columns))

    def _activations(self, prompt_id: np.ndarray, tokenized: Sequence[Tokenized]) -> list[Rows]:
        capture = self._study.recipe.capture
        token_ids = [t.token_ids for t in tokenized]
        lengths = [len(ids) for ids in token_ids]
        prompt_of_token = np.repeat(prompt_id, lengths)
        pos_of_token = np.concatenate([np.arange(n, dtype=np.int16) for n in lengths])
        resid = residuals(self._subject, token_ids, list(self._saes), capture.batch_tokens)
        parts = []
        for layer, sae in self._saes.items():
            found = nonzeros(sae, resid.pop(layer), capture.batch_tokens, to_bfloat16=capture.round == "bfloat16")
            columns = {
                "sae_id": _constant(sae.ref.sae_id, len(found.token)),
                "layer": np.full(len(found.token), layer, dtype=np.int16),
                "feature_id": found.feature_id,
                "prompt_id": prompt_of_token[found.token],
                "pos": pos_of_token[found.token],
                "activation": found.activation,
            }
            parts.append(Rows("activations", pa.table(columns), layer))
        return parts


def _token_table(prompt_id: np.ndarray, tokenized: Sequence[Tokenized]) -> Rows:
    lengths = [len(t.token_ids) for t in tokenized]
    columns = {
        "prompt_id": np.repeat(prompt_id, lengths),
        "pos": np.concatenate([np.arange(n, dtype=np.int16) for n in lengths]),
        "token_id": np.concatenate([np.array(t.token_ids, dtype=np.int32) for t in tokenized]),
        "token": [token for t in tokenized for token in t.tokens],
        "role": [role for t in tokenized for role in t.roles],
    }
    return Rows("tokens", pa.table(columns))


def _constant(text: str, n: int) -> pa.DictionaryArray:
    """A column of one repeated text, stored once."""
    return pa.DictionaryArray.from_arrays(np.zeros(n, dtype=np.int8), [text])
