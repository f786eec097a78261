"""A small lake made by hand, through the same door as a real one, with numbers small enough to compute every answer on paper.

Six prompts of four tokens (<bos>, a template token, two words), two SAEs of four features, answers under five conditions.
Prompts 0 to 3 are harmful, 4 and 5 benign; prompts are called by these numbers throughout.
"""

import atexit
import shutil
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import mkdtemp

from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord, RunSpec
from saelake.warehouse.runs import Plan, Rows, ensure_run
from saelake.warehouse.schema import ABLATIONS, ACTIVATIONS, ALIGNMENTS, FEATURES, PROMPTS, SAES, TOKENS, VERDICTS
from saelake.warehouse.statistics import FeatureStatistics

HOSTILE = '\x1b[31m[red]bold[/red]\x1b[0m, "quoted"\n\u202eend; drop table prompts; --'
LABELS = ("harmful",) * 4 + ("benign",) * 2
CATEGORIES = ("bombs", "bombs", "fraud", None, "food", None)
TEXTS = ("text 0", "text 1", "text 2", HOSTILE, "text 4", "text 5")
WORDS = ("a", "b")
"""How the user's two tokens begin, which the prompt's number follows."""
ROLES = ("bos", "template", "user", "user")
WIDTH = 4
SAE_NAMES = ("hand/0", "hand/1")

FIRINGS: Mapping[tuple[int, int], Mapping[tuple[int, int], float]] = {
    (0, 0): {(prompt, 0): 9.0 for prompt in range(6)},
    (0, 1): {(0, 2): 1.0, (0, 3): 3.0, (1, 2): 2.0, (4, 3): 3.0},
    (0, 2): {(1, 3): 0.5},
    (1, 0): {(0, 2): 4.0, (1, 1): 1.0, (2, 3): 1.5},
    (1, 3): {(0, 0): 7.0, (2, 2): 2.5},
}
"""(layer, feature_id) -> (prompt, pos) -> activation"""

COSINES = {
    ("own", 0): (0.1, 0.9, 0.9, -1.0),
    ("chosen", 0): (0.5, 0.2, 0.2, 0.2),
    ("own", 1): (0.3, -0.6, -0.2, 0.8),
    ("chosen", 1): (0.0, 0.7, 0.1, 0.7),
}
"""(direction, layer) -> cosine of each feature"""

ANSWERS = {
    ("none", None, None): "RRRFFR",
    ("direction", None, None): "FFRFFF",
    ("top_k_own", 1, None): "RFRFFR",
    ("top_k_own", 2, None): "FRDFFD",
    ("top_k_own", 3, None): "FFDFDF",
    ("top_k_chosen", 1, None): "RRRFFR",
    ("top_k_chosen", 2, None): "RFRFFR",
    ("random", 1, 0): "RRRFFR",
    ("random", 1, 1): "FRRFFR",
}
"""(condition, k, draw) -> what the judge first_token reads, prompt by prompt: Refused, Flipped, Degenerate"""

CONDITIONS = {
    "none": ("none", None, None),
    "direction": ("direction", None, None),
    "top_k_own": ("top_k", "own", None),
    "top_k_chosen": ("top_k", "chosen", None),
    "random": ("top_k", None, "random"),
}
"""condition -> method, part and control"""
BLIND = {"R": "R", "F": "F", "D": "F"}
"""The second judge, phrases, takes degenerate text for an answer."""


def build_lake(root: Path | str, recipe: str = "small", variant: int = 0) -> Lake:
    """The hand-made lake at `root`; another recipe with another variant adds a second study of the same content.

    It is published once, and once more for what a test puts in place of its words: a new folder gets a copy.
    """
    if isinstance(root, str) or root.exists():
        return _published(Lake.create(root), recipe, variant)
    shutil.copytree(_made_once(recipe, variant, (WORDS, HOSTILE, TEXTS, CATEGORIES, SAE_NAMES)), root)
    return Lake.create(root)


@cache
def _made_once(recipe: str, variant: int, content: tuple[Hashable, ...]) -> Path:
    folder = Path(mkdtemp(prefix="saelake-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _published(Lake.create(folder / "lake"), recipe, variant)
    return folder / "lake"


def _published(lake: Lake, recipe: str, variant: int) -> Lake:
    config = {"device": "cpu", "variant": variant}
    ingest_spec = RunSpec("ingest", recipe, config)
    first_id = ingest_spec.tag << 32
    ingest = publish(lake, ingest_spec, _ingest_rows(first_id), FeatureStatistics)
    alignments = publish(lake, RunSpec("alignments", recipe, config, (ingest.run_id,)), _alignment_rows())
    judged = config | {"verdicts": {"name": "first_token"}}
    ablations = RunSpec("candidates", recipe, judged, (alignments.run_id, ingest.run_id), seed=7)
    publish(lake, ablations, _answer_rows(first_id))
    return lake


def prompt_id(lake: Lake, prompt: int, recipe: str = "small") -> int:
    """The id that the lake gives one of the prompts."""
    record = lake.record(lake.current()[recipe, "ingest"][0])
    assert record is not None
    return (RunSpec(record.stage, recipe, record.config).tag << 32) + prompt


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file and folder below, with its size and time, to see that nothing has changed; locks come and go."""
    found = (p for p in folder.rglob("*") if p.parent.name != "locks")
    return {p: (p.lstat().st_size, p.lstat().st_mtime_ns) if p.is_file() else (0, 0) for p in found}


def publish(lake: Lake, spec: RunSpec, rows: Sequence[Rows], completion: type[FeatureStatistics] | None = None) -> RunRecord:
    """A run of these rows, landed as one shard."""
    return ensure_run(lake, spec, Plan.of(list(rows), sorted({r.table for r in rows}), completion))


def _ingest_rows(first_id: int) -> list[Rows]:
    prompts = range(6)
    tokens = list(product(prompts, range(4)))
    rows = [
        Rows.of(
            PROMPTS,
            {
                "prompt_id": [first_id + p for p in prompts],
                "prompt_hash": [f"hash{p}" for p in prompts],
                "set": ["hand"] * 6,
                "split": ["test"] * 6,
                "label": LABELS,
                "label_role": ["target" if label == "harmful" else "control" for label in LABELS],
                "category": CATEGORIES,
                "text": TEXTS,
                "n_tokens": [4] * 6,
                "template_hash": ["template"] * 6,
                "family": [None] * 6,
            },
        ),
        Rows.of(
            TOKENS,
            {
                "prompt_id": [first_id + p for p, _ in tokens],
                "pos": [pos for _, pos in tokens],
                "token_id": [pos for _, pos in tokens],
                "token": [("<bos>", "user", f"{WORDS[0]}{p}", f"{WORDS[1]}{p}")[pos] for p, pos in tokens],
                "piece": [("<bos>", "user", f"{WORDS[0]}{p}", f"{WORDS[1]}{p}")[pos] for p, pos in tokens],
                "role": [ROLES[pos] for _, pos in tokens],
            },
        ),
        Rows.of(
            SAES,
            {
                "sae_id": ["sae0", "sae1"],
                "name": SAE_NAMES,
                "layer": [0, 1],
                "width": [WIDTH] * 2,
                "hook": ["resid_post"] * 2,
                "norm": ["none"] * 2,
                "declared_l0": [None, 1.0],
            },
        ),
    ]
    columns: dict[str, Sequence[object]]
    for layer in (0, 1):
        columns = {"sae_id": [f"sae{layer}"] * WIDTH, "layer": [layer] * WIDTH, "feature_id": range(WIDTH)}
        rows.append(Rows.of(FEATURES, columns | {"decoder_norm": [1.0] * WIDTH, "threshold": [0.0] * WIDTH}, layer))
        fired = [(f, p, pos, value) for (at, f), tokens_ in FIRINGS.items() if at == layer for (p, pos), value in tokens_.items()]
        rows.append(
            Rows.of(
                ACTIVATIONS,
                {
                    "sae_id": [f"sae{layer}"] * len(fired),
                    "layer": [layer] * len(fired),
                    "feature_id": [f for f, *_ in fired],
                    "prompt_id": [first_id + p for _, p, *_ in fired],
                    "pos": [pos for *_, pos, _ in fired],
                    "activation": [value for *_, value in fired],
                },
                layer,
            )
        )
    return rows


def _alignment_rows() -> list[Rows]:
    rows = []
    for layer in (0, 1):
        pairs = [(d, f, cosine) for (d, at), cosines in COSINES.items() if at == layer for f, cosine in enumerate(cosines)]
        columns: dict[str, Sequence[object]] = {
            "direction": [direction for direction, *_ in pairs],
            "sae_id": [f"sae{layer}"] * len(pairs),
            "layer": [layer] * len(pairs),
            "feature_id": [f for _, f, _ in pairs],
            "cosine": [cosine for *_, cosine in pairs],
        }
        rows.append(Rows.of(ALIGNMENTS, columns, layer))
    return rows


def _answer_rows(first_id: int) -> list[Rows]:
    answers = [(*key, prompt, letter) for key, letters in ANSWERS.items() for prompt, letter in enumerate(letters)]
    judged = [(judge, i, answer[-1]) for judge in ("first_token", "phrases") for i, answer in enumerate(answers)]
    read = [letter if judge == "first_token" else BLIND[letter] for judge, _, letter in judged]
    return [
        Rows.of(
            ABLATIONS,
            {
                "ablation_id": range(len(answers)),
                "prompt_id": [first_id + prompt for *_, prompt, _ in answers],
                "set_id": [None] * len(answers),
                "stage": ["candidates"] * len(answers),
                **{name: [CONDITIONS[one][i] for one, *_ in answers] for i, name in enumerate(("method", "part", "control"))},
                "seed": [None if draw is None else 7 for _, _, draw, *_ in answers],
                "draw": [draw for _, _, draw, *_ in answers],
                "k": [k for _, k, *_ in answers],
                "p_refusal_token": [0.5] * len(answers),
                "first_token": ["I"] * len(answers),
                "completion": [f"{HOSTILE} {letter}" for *_, letter in answers],
            },
        ),
        Rows.of(
            VERDICTS,
            {
                "ablation_id": [i for _, i, _ in judged],
                "judge": [judge for judge, *_ in judged],
                "refused": [letter == "R" for letter in read],
                "degenerate": [letter == "D" for letter in read],
                "degenerate_rule": ["loop" if letter == "D" else None for letter in read],
                "flipped": [letter == "F" for letter in read],
                "score": [0.5] * len(judged),
            },
        ),
    ]
