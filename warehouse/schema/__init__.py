"""The protocol: every table of a lake, every column with its type, meaning and unit. Where code differs, the code is wrong.

Identity. `prompt_id`, `ablation_id` and `set_id` are int64: the 31-bit tag of the run that made them, shifted left by 32, plus a
dense 32-bit index. They are unique across runs, so a join needs one column. They pass 2^53: JSON carries them as strings.
A feature is `(sae_id, feature_id)`. `layer` is the block after which resid_post is read, counted from 0.
"""

from saelake.warehouse.schema.captured import (
    ACTIVATIONS,
    ACTIVATIONS_BY_PROMPT,
    FEATURES,
    PROMPTS,
    SAES,
    TOKENS,
)
from saelake.warehouse.schema.columns import Column, Table
from saelake.warehouse.schema.interactions import (
    CAUSAL_LINKS,
    COMPARISONS,
    DECODER_COSINES,
    FM_EMBEDDINGS,
    FM_METRICS,
    FM_PAIRS,
    LAYER_COSINES,
    LOSSES,
    MODELS,
    PREDICTIONS,
    PROBE_WEIGHTS,
    REACTIVATIONS,
    WAKING_EDGES,
    WAKING_PASSES,
    WAKINGS,
)
from saelake.warehouse.schema.meaning import (
    ANNOTATIONS,
    CONCEPTS,
    EXPLANATIONS,
    POPULATIONS,
    SEPARATIONS,
    TAXONOMY,
)
from saelake.warehouse.schema.search import (
    ABLATIONS,
    ALIGNMENTS,
    CRITICAL_FEATURES,
    DIRECTIONS,
    FEATURE_SETS,
    SEARCH_TRACE,
    SEARCHES,
    VERDICTS,
)

__all__ = [
    "ABLATIONS",
    "ACTIVATIONS",
    "ACTIVATIONS_BY_PROMPT",
    "ALIGNMENTS",
    "ANNOTATIONS",
    "CAUSAL_LINKS",
    "COMPARISONS",
    "CONCEPTS",
    "CRITICAL_FEATURES",
    "DECODER_COSINES",
    "DIRECTIONS",
    "EXPLANATIONS",
    "FEATURES",
    "FEATURE_SETS",
    "FM_EMBEDDINGS",
    "FM_METRICS",
    "FM_PAIRS",
    "LAYER_COSINES",
    "LOSSES",
    "MODELS",
    "POPULATIONS",
    "PREDICTIONS",
    "PROBE_WEIGHTS",
    "PROMPTS",
    "REACTIVATIONS",
    "RUNS_STRUCTURE",
    "SAES",
    "SCHEMA_VERSION",
    "SEARCHES",
    "SEARCH_TRACE",
    "SEPARATIONS",
    "TABLES",
    "TAXONOMY",
    "TOKENS",
    "VERDICTS",
    "WAKINGS",
    "WAKING_EDGES",
    "WAKING_PASSES",
    "Column",
    "Table",
]

SCHEMA_VERSION = 1

TABLES = {
    t.name: t
    for t in (
        PROMPTS,
        TOKENS,
        SAES,
        FEATURES,
        ACTIVATIONS,
        ACTIVATIONS_BY_PROMPT,
        DIRECTIONS,
        ALIGNMENTS,
        FEATURE_SETS,
        ABLATIONS,
        VERDICTS,
        SEARCH_TRACE,
        SEARCHES,
        LAYER_COSINES,
        DECODER_COSINES,
        CRITICAL_FEATURES,
        WAKING_PASSES,
        REACTIVATIONS,
        WAKINGS,
        WAKING_EDGES,
        LOSSES,
        MODELS,
        FM_METRICS,
        FM_EMBEDDINGS,
        FM_PAIRS,
        PROBE_WEIGHTS,
        PREDICTIONS,
        CAUSAL_LINKS,
        COMPARISONS,
        POPULATIONS,
        TAXONOMY,
        SEPARATIONS,
        EXPLANATIONS,
        CONCEPTS,
        ANNOTATIONS,
    )
}

RUNS_STRUCTURE = {
    "run_id": "VARCHAR",
    "stage": "VARCHAR",
    "recipe": "VARCHAR",
    "parents": ["VARCHAR"],
    "config": "JSON",
    "code_version": "VARCHAR",
    "schema_version": "INTEGER",
    "seed": "BIGINT",
    "hardware": "JSON",
    "versions": "JSON",
    "started": "TIMESTAMP",
    "finished": "TIMESTAMP",
    "tables": [{"name": "VARCHAR", "n_rows": "BIGINT", "content_hash": "VARCHAR"}],
    "files": [{"table": "VARCHAR", "path": "VARCHAR", "n_rows": "BIGINT", "n_bytes": "BIGINT", "sha256": "VARCHAR"}],
    "content_hash": "VARCHAR",
    "about": "JSON",
    "withheld": ["VARCHAR"],
}
"""The `runs` table: one JSON record a run (`runs/<run_id>.json`), with the DuckDB types of its fields."""
