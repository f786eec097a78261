"""circuit-tracer's attribution graphs: nodes and links of one prompt, of which the edges between features are kept.

    {"metadata": {"slug", "scan", "prompt", "prompt_tokens"}, "nodes": [{"node_id", "layer", "ctx_idx", "feature_type"}],
     "links": [{"source", "target", "weight"}]}

A feature's node is called LAYER_FEATURE_POSITION. Links from and to embeddings, errors and logits are left out, and counted. Each
layer's transcoder must be an SAE of the study.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saelake.analysis.meaning.explanations import KnownSae
from saelake.formats.examples import number
from saelake.formats.joined import Joined, check_feature
from saelake.formats.json_files import read_json
from saelake.formats.models import check_model
from saelake.formats.registry import Asked, Format, Found
from saelake.formats.sources import is_model
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import GRAPH_EDGES

OWNER = "import circuit_tracer"
NODE = re.compile(r"(\d{1,5})_(\d{1,9})_(\d{1,9})")
TRANSCODER = "transcoder"
"""Part of the feature_type of nodes that are features: cross layer transcoder, per-layer transcoder."""


class _Node(NamedTuple):
    sae: KnownSae
    feature_id: int
    pos: int


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    columns: dict[str, list[Any]] = {column.name: [] for column in GRAPH_EDGES.stored() if column.name != "run_id"}
    n_left_out, saes, prompts = 0, dict[KnownSae, None](), list[str]()
    for file in files:
        content = read_json(file, OWNER)
        nodes, links, metadata = _parts(content, file)
        graph = str(metadata.get("slug") or file.stem)
        if graph in columns["graph"]:
            raise UserError(f"{OWNER}: two files hold the graph {graph!r}")
        scan = str(metadata.get("scan") or "")
        if is_model(scan):  # else it is what a set of transcoders is called
            check_model(scan, joined, asked, f"{OWNER}: {file.name}")
        prompts.append(str(metadata.get("prompt") or ""))
        tokens = metadata.get("prompt_tokens")
        n_tokens = len(tokens) if isinstance(tokens, list) else None
        known = _nodes(nodes, joined, n_tokens, f"{OWNER}: {file.name}")
        seen: set[tuple[str, str]] = set()
        for place, link in enumerate(links, start=1):
            where = f"{OWNER}: {file.name}, link {place}"
            if not isinstance(link, dict) or not {"source", "target", "weight"} <= link.keys():
                raise UserError(f"{where}: it needs source, target and weight")
            pair = str(link["source"]), str(link["target"])
            if pair in seen:
                raise UserError(f"{where}: the link from {pair[0]} to {pair[1]} comes twice")
            seen.add(pair)
            if absent := [one for one in pair if one not in known]:
                raise UserError(f"{where}: there is no node {absent[0]!r}")
            source, target = known[pair[0]], known[pair[1]]
            weight = number(link["weight"], where)
            if source is None or target is None:
                n_left_out += 1
                continue
            saes |= {source.sae: None, target.sae: None}
            leaves = (source.sae.sae_id, source.sae.layer, source.feature_id, source.pos)
            reaches = (target.sae.sae_id, target.sae.layer, target.feature_id, target.pos)
            for values, value in zip(columns.values(), (graph, *leaves, *reaches, weight), strict=True):
                values.append(value)
    about = {"graph_prompts": prompts, "n_left_out": n_left_out}
    return Found(lambda _: [Rows.of(GRAPH_EDGES, columns)], joined.run_of(list(saes)), about)


def _parts(content: Any, file: Path) -> tuple[list[Any], list[Any], dict[str, Any]]:
    if isinstance(content, dict):
        nodes, links, metadata = content.get("nodes"), content.get("links"), content.get("metadata") or {}
        if isinstance(nodes, list) and isinstance(links, list) and isinstance(metadata, dict):
            return nodes, links, metadata
    raise UserError(f"{OWNER}: {file.name} has no lists of nodes and links: give a graph of circuit-tracer")


def _nodes(nodes: Sequence[Any], joined: Joined, n_tokens: int | None, where: str) -> dict[str, _Node | None]:
    """node_id -> the feature that it is; None for embeddings, errors and logits."""
    found: dict[str, _Node | None] = {}
    for place, node in enumerate(nodes, start=1):
        at = f"{where}, node {place}"
        if not isinstance(node, dict) or "node_id" not in node or "feature_type" not in node:
            raise UserError(f"{at}: it needs node_id and feature_type")
        name = str(node["node_id"])
        if name in found:
            raise UserError(f"{at}: the node {name!r} comes twice")
        found[name] = None
        if TRANSCODER not in str(node["feature_type"]):
            continue
        named = NODE.fullmatch(name)
        told = None if named is None else (str(node.get("layer", named[1])), str(node.get("ctx_idx", named[3])))
        if named is None or told != (named[1], named[3]):
            wrong = "is not LAYER_FEATURE_POSITION, or says another layer or position than the node"
            raise UserError(f"{at}: {name!r} {wrong}")
        sae, pos = joined.named(named[1], at), int(named[3])
        if n_tokens is not None and pos >= n_tokens:
            raise UserError(f"{at}: its position {pos} is past the prompt's end, {n_tokens} tokens")
        found[name] = _Node(sae, check_feature(sae, int(named[2]), at), pos)
    return found


FORMAT = Format(
    what="circuit-tracer's attribution graphs (JSON): edges between features",
    read=_read,
    files=("*.json",),
    reads=frozenset({"model"}),
)
