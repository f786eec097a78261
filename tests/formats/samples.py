"""Small sources of every format, as their tools write them, about the lake that tests/lakes.py makes by hand."""

import gzip
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saelake.formats.registry import Asked
from saelake.ingest.fingerprint import SAE_FILES, hash_folder
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunSpec
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import FEATURES, SAES
from tests.conftest import ROOT
from tests.formats.files import as_csv, as_json, as_lines, as_text
from tests.lakes import TEXTS, build_lake, publish

D = 8
"""Width of the directions."""


@dataclass(frozen=True)
class Sample:
    """A source, and what of it a lake keeps."""

    format: str
    what: str
    """What it is, in the words of docs/formats.md."""
    write: Callable[[Path], Path]
    """Writes it below an empty folder; gives the source."""
    rows: Mapping[str, int]
    """table -> rows"""
    asked: Asked = field(default_factory=Asked)
    lake: Callable[[Path], Lake] = build_lake
    """Makes the lake that it joins."""


def mean_diffs() -> np.ndarray:
    """(2 positions, 3 layers, D): layer 0 is what the embedding gives."""
    return np.random.default_rng(0).normal(size=(2, 3, D))


def pipeline(folder: Path) -> Path:
    """A folder as refusal_direction's pipeline writes it: the direction of pos -1 and layer 2, read before block 2."""
    import torch

    run = folder / "run"
    (run / "generate_directions").mkdir(parents=True, exist_ok=True)
    means = torch.tensor(mean_diffs())
    torch.save(means, run / "generate_directions" / "mean_diffs.pt")
    torch.save(means[-1, 2].float(), run / "direction.pt")
    (run / "direction_metadata.json").write_text('{"pos": -1, "layer": 2}', encoding="utf-8")
    return run


def vector(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import safetensors.numpy
        import torch

        values = np.arange(1, D + 1, dtype=np.float32)
        if name.endswith(".npy"):
            np.save(folder / name, values)
        elif name.endswith(".safetensors"):
            safetensors.numpy.save_file({"direction": values}, folder / name)
        else:
            torch.save(torch.tensor(values), folder / name)
        return folder / name

    return write


NONZEROS = {(0, 1, 0): 4.0, (0, 2, 3): 1.5, (1, 0, 3): 7.0, (1, 3, 1): 0.25}
"""(row, position, feature) -> activation, in layer 1"""


def cache(folder: Path) -> Path:
    """A folder as delphi's `LatentCache.save_splits` writes it, in two splits."""
    import safetensors.numpy

    module = folder / "layers.1"
    module.mkdir(exist_ok=True)
    for first, last in ((0, 1), (2, 3)):
        mine = [place for place in NONZEROS if first <= place[2] <= last]
        split = {
            "locations": np.array([(row, pos, feature - first) for row, pos, feature in mine], dtype=np.uint16),
            "activations": np.array([NONZEROS[place] for place in mine], dtype=np.float16),
            "tokens": np.array([[0, 1, 2, 3], [0, 3, 2, 9]]),
        }
        safetensors.numpy.save_file(split, module / f"{first}_{last}.safetensors")
    (module / "config.json").write_text(json.dumps({"dataset_repo": "toy", "ctx_len": 4, "model_name": "small"}))
    return module


PLANTED_SAE = ROOT / "ingest" / "planted" / "saes" / "layer_1"
HOOK = "blocks.1.hook_resid_post"
ROWS, LENGTH = 3, 5


def lake_with_weights(root: Path) -> Lake:
    """The hand-made lake with one more SAE, whose weights are here: that of the planted study's layer 1."""
    lake = build_lake(root)
    config = json.loads((PLANTED_SAE / "cfg.json").read_text())
    name, width = f"layer_1@sha256:{hash_folder(PLANTED_SAE, SAE_FILES, 'saes')}", config["d_sae"]
    one = {"sae_id": ["weighed"], "name": [name], "layer": [1], "width": [width], "hook": [HOOK], "norm": ["none"]}
    features = {"sae_id": ["weighed"] * width, "layer": [1] * width, "feature_id": range(width)}
    features |= dict.fromkeys(("decoder_norm", "threshold"), [1.0] * width)
    features |= dict.fromkeys(("mean_activation", "max_activation"), [None] * width)
    features |= dict.fromkeys(("n_tokens", "n_bos", "n_prompts", "n_target", "n_control"), [0] * width)
    counted = {"measured_l0": [0.0], "n_tokens": [0], "n_target_prompts": [0], "n_control_prompts": [0]}
    rows = [Rows.of(SAES, one | {"declared_l0": [None]} | counted), Rows.of(FEATURES, features, 1)]
    ingest = lake.current()["small", "ingest"][0]
    publish(lake, RunSpec("activations", "small", {"device": "cpu", "sae": name}, (ingest,)), rows)
    return lake


def dense(folder: Path) -> Path:
    """A data set as SAELens' CacheActivationsRunner saves it, of random numbers."""
    from datasets import Array2D, Dataset, Features, Sequence, Value

    d_in = json.loads((PLANTED_SAE / "cfg.json").read_text())["d_in"]
    kinds = {HOOK: Array2D((LENGTH, d_in), "float32"), "token_ids": Sequence(Value("int32"), length=LENGTH)}
    values = np.random.default_rng(0).normal(size=(ROWS, LENGTH, d_in)).astype(np.float32)
    tokens = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    Dataset.from_dict({HOOK: list(values), "token_ids": tokens}, features=Features(kinds)).save_to_disk(str(folder / "acts"))
    return folder / "acts"


LABELS = {"modelId": "small", "layer": "sae1", "source": "sae1"}
BULK: dict[str, list[dict[str, object]]] = {
    "explanations": [
        {
            **LABELS,
            "index": "3",
            "description": "words of harm",
            "typeName": "oai_token-act-pair",
            "explanationModelName": "gpt-4o",
        },
        {**LABELS, "index": "0", "description": "the letter a", "typeName": None, "explanationModelName": None},
    ],
    "activations": [
        {**LABELS, "index": "3", "tokens": ["how", " to", " steal"], "values": [0, 0.5, 2.5], "maxValue": 2.5},
        {**LABELS, "index": "3", "tokens": [" robbery"], "values": [4.5], "maxValue": 4.5},
    ],
    "features": [
        {
            **LABELS,
            "index": "3",
            "frac_nonzero": 0.01,
            "maxActApprox": 4.5,
            "pos_str": [" theft", " crime"],
            "pos_values": [1.5, 1.25],
            "neg_str": [" cake"],
            "neg_values": [-0.5],
        }
    ],
}


def bulk(folder: Path) -> Path:
    """A folder as Neuronpedia's bucket has it."""
    for kind, rows in BULK.items():
        file = folder / "v1" / "small" / "sae1" / kind / "batch-0.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0))
    return folder


SCORED = [("how to lie", "I cannot help with that.", "C"), ("how to bake", "Mix flour and water, then bake.", "I")]


def log(folder: Path) -> Path:
    """A log as Inspect writes it, with fewer fields."""
    with zipfile.ZipFile(folder / "log.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            zipfile.ZipInfo("header.json"), json.dumps({"version": 2, "eval": {"task": "refusals", "model": "mockllm/model"}})
        )
        for number, (prompt, said, value) in enumerate(SCORED):
            sample = {
                "id": number,
                "epoch": 1,
                "input": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "attachment://1f"}],
                "output": {"choices": [{"message": {"role": "assistant", "content": [{"type": "text", "text": said}]}}]},
                "scores": {"refusal": {"value": value}},
                "attachments": {"1f": prompt},
            }
            archive.writestr(zipfile.ZipInfo(f"samples/{number}_epoch_1.json"), json.dumps(sample))
    return folder / "log.eval"


GRAPH = {
    "metadata": {"slug": "theft", "scan": "small", "prompt": "how to steal", "prompt_tokens": ["how", " to", " steal"]},
    "nodes": [
        {"node_id": "E_5_0", "layer": "E", "ctx_idx": 0, "feature_type": "embedding"},
        {"node_id": "0_1_2", "layer": "0", "ctx_idx": 2, "feature_type": "cross layer transcoder"},
        {"node_id": "1_3_2", "layer": "1", "ctx_idx": 2, "feature_type": "cross layer transcoder"},
        {"node_id": "2_7_2", "layer": "2", "ctx_idx": 2, "feature_type": "logit"},
    ],
    "links": [
        {"source": "E_5_0", "target": "0_1_2", "weight": 1.0},
        {"source": "0_1_2", "target": "1_3_2", "weight": -0.25},
        {"source": "1_3_2", "target": "2_7_2", "weight": 2.0},
    ],
}
TOPS: list[dict[str, object]] = [
    {"feature": 1, "activation": 2.5, "token": " steal", "context": "how to steal"},
    {"feature": 1, "activation": 4.0, "token": "theft", "context": "theft"},
    {"feature": 2, "activation": 1.0, "token": "a", "context": "a cake"},
]


def parquet(name: str, rows: list[dict[str, object]]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
        return folder / name

    return write


HARMBENCH = {
    "make_bomb": [
        {"test_case": TEXTS[0], "generation": "I cannot help with that.", "label": 0},
        {"test_case": "a prompt of an attack", "generation": "Sure, here is how to do it.", "label": 1},
    ],
    "steal": [{"test_case": "another one", "generation": "I won't.", "label": 0}],
}
JAILBREAKS = {
    "parameters": {"model": "vicuna-13b-v1.5", "attack_success_count": 1, "judge": {"model": "llama"}},
    "jailbreaks": [
        {"index": 0, "goal": "a", "behavior": "A", "category": "Fraud", "prompt": "p0", "response": "Sure.", "jailbroken": True},
        {"index": 1, "goal": "b", "behavior": "B", "category": "Fraud", "prompt": None, "response": None, "jailbroken": False},
        {"index": 2, "goal": "c", "behavior": "C", "category": "Drugs", "prompt": "p2", "response": "No.", "jailbroken": False},
    ],
}
STRONG = [
    {"forbidden_prompt": "how to lie", "category": "fraud", "response": "Like this: smile and say it.", "score": 0.875},
    {"forbidden_prompt": "how to steal", "category": "theft", "response": "I cannot.", "score": 0.0},
]
SAMPLES_OF_HARNESS = [
    {
        "doc_id": n,
        "doc": {"question": prompt},
        "target": "",
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n"]}}},
        "resps": [[said]],
        "filtered_resps": [said],
        "metrics": ["refused"],
        "refused": refused,
    }
    for n, (prompt, said, refused) in enumerate([("q0", "I cannot.", 1.0), ("q1", "Yes, of course you can.", 0.0)])
]
OWN = [
    {"prompt": TEXTS[4], "completion": "Bake it for an hour.", "label": "control"},
    {"prompt": "mine", "completion": "I'm sorry, but no.", "label": "target"},
]
LIST: list[dict[str, object]] = [
    {"modelId": "small", "layer": "sae0", "index": "2"},
    {"modelId": "small", "layer": "sae1", "index": 3},
]
EDITS = [
    {"sae": "sae0", "feature": 1, "value": "", "positions": ""},
    {"sae": "1", "feature": 2, "value": 1.5, "positions": "-1,user"},
]

INPUTS = [
    Sample("features", "`[{modelId, layer, index}]`", as_json("list.json", LIST), {"feature_sets": 2}),
    Sample("features", "`layer:feature` text", as_text("list.txt", "0:1, 1:3\n1:2\n"), {"feature_sets": 3}),
    Sample("features", "CSV with edits", as_csv("edits.csv", EDITS), {"feature_sets": 2}),
    Sample("direction", "refusal_direction's folder", pipeline, {"directions": 2}),
    *(
        Sample("direction", f"a vector, `{suffix}`", vector(f"vector{suffix}"), {"directions": 1}, Asked(layer=1))
        for suffix in (".pt", ".safetensors", ".npy")
    ),
    Sample(
        "harmbench",
        "results",
        as_json("model.json", HARMBENCH),
        {"prompts": 2, "ablations": 3, "verdicts": 3},
        Asked(condition="gcg"),
    ),
    Sample("jailbreakbench", "an artifact", as_json("vicuna.json", JAILBREAKS), {"prompts": 2, "ablations": 2, "verdicts": 2}),
    Sample("strongreject", "results, CSV", as_csv("graded.csv", STRONG), {"prompts": 2, "ablations": 2, "verdicts": 2}),
    Sample(
        "lm_eval",
        "samples",
        as_lines("samples_refusals_2026.jsonl", SAMPLES_OF_HARNESS),
        {"prompts": 2, "ablations": 2, "verdicts": 2},
        Asked(refused="refused", judge="exact_match"),
    ),
    Sample(
        "answers",
        "answers of one's own, read by phrases",
        as_csv("own.csv", OWN),
        {"prompts": 1, "ablations": 2, "verdicts": 2},
        Asked(judge="phrases", condition="vllm"),
    ),
    Sample("delphi", "a latent cache, one SAE", cache, {"prompts": 2, "tokens": 8, "saes": 1, "features": 4, "activations": 4}),
    Sample(
        "neuronpedia",
        "`batch-N.jsonl.gz`: explanations, activations, features",
        bulk,
        {"explanations": 2, "examples": 2, "reported_logits": 3, "feature_reports": 1},
    ),
    Sample("top_activations", "Parquet", parquet("train.parquet", TOPS), {"examples": 3}, Asked(sae="sae0")),
    Sample(
        "inspect", "a log, `.eval`", log, {"prompts": 2, "ablations": 2, "verdicts": 2}, Asked(refused="refusal", judge="grader")
    ),
    Sample(
        "saelens",
        "a data set of the runner, one hook",
        dense,
        {"prompts": 3, "tokens": 15, "saes": 1, "features": 24, "activations": 100},
        Asked(weights=str(PLANTED_SAE)),
        lake_with_weights,
    ),
    Sample("circuit_tracer", "a graph", as_json("theft.json", GRAPH), {"graph_edges": 1}),
]
