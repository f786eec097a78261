"""The tables of the protocol that hold what other tools say of features, and of edges between them."""

import pyarrow as pa

from saelake.warehouse.schema.columns import FEATURE_ID, LAYER, RUN_ID, SAE_ID, VECTOR, Column, Table, of_layer, of_width

EXAMPLES = Table(
    "examples",
    "one text on which a feature of this exact SAE fires, as another tool shows it; text of others, untrusted",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("number", pa.int32(), "number of the feature's example, from 0, strongest first", at_least=0, since=2),
        Column("activation", pa.float32(), "its largest activation in the text", at_least=0, since=2),
        Column("token", pa.string(), "the token that has it", null="not known", since=2),
        Column("pos", pa.int32(), "that token's place in the text, from 0", null="not known", at_least=0, since=2),
        Column("context", pa.string(), "the text", since=2),
        Column("tokens", pa.string(), "its tokens, a JSON list of texts", null="not known", since=2),
        Column("values", VECTOR, "the activation on each token", null="not known", since=2),
        Column("source", pa.string(), "where it is from", since=2),
    ),
    key=("run_id", "sae_id", "feature_id", "number"),
    order=("layer", "feature_id", "number"),
)
REPORTED_LOGITS = Table(
    "reported_logits",
    "one token whose logit a feature's decoder row raises or lowers most, as another tool has it",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("side", pa.string(), "promoted or suppressed", choices=("promoted", "suppressed"), since=2),
        Column("rank", pa.int32(), "from 0, the strongest first", at_least=0, since=2),
        Column("token", pa.string(), "the token as text", since=2),
        Column("logit", pa.float32(), "what one unit of the feature adds to its logit", since=2),
    ),
    key=("run_id", "sae_id", "feature_id", "side", "rank"),
    order=("layer", "feature_id", "side", "rank"),
)
FEATURE_REPORTS = Table(
    "feature_reports",
    "one feature of this exact SAE as another tool counts it, on texts of its own",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("density", pa.float64(), "share of tokens on which it fires", null="not said", at_least=0, at_most=1, since=2),
        Column("max_activation", pa.float32(), "largest activation", null="not said", at_least=0, since=2),
        Column("source", pa.string(), "where it is from", since=2),
    ),
    key=("run_id", "sae_id", "feature_id"),
    order=("layer", "feature_id"),
)
GRAPH_EDGES = Table(
    "graph_edges",
    "one edge between two features in an attribution graph of one prompt, as another tool made it",
    (
        RUN_ID,
        Column("graph", pa.string(), "the graph's name", since=2),
        Column("source_sae_id", pa.string(), "SAE of the feature that the edge leaves", refers="saes.sae_id", since=2),
        Column("source_layer", pa.int16(), "its layer", limit=of_layer("source_sae_id"), since=2, at_least=0),
        Column("source_feature_id", pa.int32(), "its index", at_least=0, limit=of_width("source_sae_id"), since=2),
        Column("source_pos", pa.int32(), "token at which it fires, from 0", at_least=0, since=2),
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("pos", pa.int32(), "token at which the feature fires that the edge leads to, from 0", at_least=0, since=2),
        Column("weight", pa.float32(), "what the source adds to that feature directly", since=2),
    ),
    key=("run_id", "graph", "source_sae_id", "source_feature_id", "source_pos", "sae_id", "feature_id", "pos"),
    order=("graph", "source_layer", "source_feature_id", "source_pos", "layer", "feature_id", "pos"),
)
