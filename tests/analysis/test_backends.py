"""Backends side by side: every planted mistake is named where it begins, and sound readings raise no alarm."""

import copy
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import AutoTokenizer

import saelake
from saelake.analysis.backends import Parting, partings
from saelake.cli import main
from saelake.ingest.backends.backend import SKETCH, sketch
from saelake.ingest.backends.hooked import TransformerLens
from saelake.ingest.backends.ours import PASSES, Transformers
from saelake.ingest.backends.served import Vllm
from saelake.warehouse.catalog import current_records
from saelake.warehouse.schema import READINGS
from tests.analysis.wrong_backends import TOKEN_IDS, WRONG, another
from tests.ingest.families import D_MODEL, N_HEADS, N_LAYERS, N_POSITIONS, make_family
from tests.ingest.tiny import word_tokenizer
from tests.planted import write_planted

TEXTS = ["how to steal a violin", "bake a cake", "what is the capital of the old country and who made it then", "the sea"]
FAMILIES = ("GPT-2", "Llama", "Gemma 2")


@cache
def subject(family: str, seed: int = 0) -> saelake.Subject:
    model = make_family(family)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters() if seed else ():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return saelake.Subject(model, word_tokenizer(), target_tokens=["I"])


def one(subject: saelake.Subject, backend: Any) -> Parting:
    (found,) = saelake.compare(subject, {"other": backend}, TEXTS)
    return found


@pytest.mark.parametrize("name", WRONG)
def test_a_planted_mistake_is_named_where_it_begins(name: str) -> None:
    wrong = WRONG[name]
    found = one(subject(wrong.family), wrong.make(subject(wrong.family)))
    assert (found.parts, found.layer, found.site) == (True, wrong.layer, wrong.site), found
    if wrong.pos >= 0:
        assert found.pos == wrong.pos, found
    if wrong.site == TOKEN_IDS:
        assert found.token_id != found.reference_token_id
        assert f"in its token ids, at position {found.pos} of prompt {found.prompt}" in str(found)
    else:
        assert found.difference is not None
        assert found.floor is not None
        assert found.difference > found.floor > 0
        assert "diverges from transformers at" in str(found)


@pytest.mark.parametrize(
    ("family", "seed"),
    [*((family, seed) for family in FAMILIES for seed in range(3)), ("OPT", 0), ("Falcon", 0), ("GPT-NeoX", 0)],
)
def test_sound_readings_raise_no_alarm(family: str, seed: int) -> None:
    here = subject(family, seed)
    halves = another(here, lambda model: model.bfloat16())
    for mine in (here, halves):
        theirs = {"padded": mine, "bridge": bridge(family, seed, mine.dtype)}
        if family == "GPT-2" and mine is here:
            theirs["hooked"] = hooked(seed)
        for found in saelake.compare(mine, theirs, TEXTS):
            assert not found.parts, found
            assert found.layer is None
            assert found.difference is not None
            assert found.n_parted == 0
            assert "reads what transformers reads, up to rounding" in str(found)


def bridge(family: str, seed: int, dtype: torch.dtype) -> Any:
    folder = Path(mkdtemp())
    subject(family, seed).model.save_pretrained(folder)
    subject(family, seed).tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TransformerBridge.boot_transformers(str(folder), tokenizer=tokenizer, device="cpu", dtype=dtype)


def hooked(seed: int = 0, **processing: bool) -> HookedTransformer:
    """The tiny GPT-2 as a HookedTransformer, whose weights are as they are unless told otherwise."""
    here = subject("GPT-2", seed)
    folder = Path(mkdtemp())
    here.tokenizer.save_pretrained(folder)
    config = HookedTransformerConfig(
        n_layers=N_LAYERS,
        d_model=D_MODEL,
        n_ctx=N_POSITIONS,
        d_head=D_MODEL // N_HEADS,
        n_heads=N_HEADS,
        d_mlp=4 * D_MODEL,
        d_vocab=here.n_vocab,
        act_fn="gelu_new",
        normalization_type="LN",
        default_prepend_bos=False,
        device="cpu",
    )
    model = HookedTransformer(config, tokenizer=AutoTokenizer.from_pretrained(folder), default_padding_side="left")
    state = convert_gpt2_weights(here.model, config)
    options = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
    model.load_and_process_state_dict(state, **options | processing)
    return model


@pytest.mark.parametrize(
    ("processing", "place"),
    [
        ({}, None),
        ({"center_unembed": True}, None),  # a constant in all logits changes no probability
        ({"fold_ln": True}, (0, "mlp_in")),
        ({"fold_ln": True, "center_writing_weights": True}, (0, "resid_pre")),
    ],
)
def test_weights_that_transformer_lens_folds_or_centres_are_named(
    processing: dict[str, bool], place: tuple[int, str] | None
) -> None:
    found = one(subject("GPT-2"), hooked(**processing))
    assert (found.layer, found.site) == (place or (None, None)), found


def test_what_transformer_lens_puts_before_a_text_is_named() -> None:
    here = subject("GPT-2")
    found = one(here, TransformerLens(hooked(), here.template, prepend_bos=True))
    assert (found.site, found.pos) == (TOKEN_IDS, 1), "the template writes BOS, and TransformerLens writes it again"


@pytest.mark.parametrize("family", [*FAMILIES, "OPT", "Falcon"])
def test_nnsight_reads_the_same_and_other_weights_show(family: str) -> None:
    nnsight = pytest.importorskip("nnsight")
    here = subject(family)
    assert not one(here, nnsight.NNsight(copy.deepcopy(here.model))).parts
    if family == "Llama":
        wrong = WRONG["another revision"].make(here).subject.model
        assert one(here, nnsight.NNsight(wrong))[2:4] == (1, "mlp_out")


class LogProb(NamedTuple):
    logprob: float


class Served:
    """Answers as vllm.LLM.generate does: of each position of the prompt but the first, and of one token more."""

    def __init__(self, subject: saelake.Subject) -> None:
        self.subject = subject

    def get_tokenizer(self) -> Any:
        return self.subject.tokenizer

    def generate(self, prompts: list[dict[str, list[int]]], parameters: dict[str, Any]) -> list[Any]:
        assert (parameters["prompt_logprobs"], parameters["logprobs"], parameters["max_tokens"]) == (-1, -1, 1)
        return [self._output(one["prompt_token_ids"]) for one in prompts]

    def _output(self, ids: list[int]) -> Any:
        logits = self.subject.forward(self.subject.batch([ids]), logits_to_keep=0)[0]
        rows = [{token: LogProb(float(p)) for token, p in enumerate(row)} for row in logits.log_softmax(-1)]
        completion = type("Completion", (), {"logprobs": [rows[-1]]})()
        return type("Output", (), {"prompt_logprobs": [None, *rows[:-1]], "outputs": [completion]})()


def test_a_server_that_gives_probabilities_alone_is_compared_by_them() -> None:
    here = subject("Gemma 2")
    found = one(here, Vllm(Served(here), here.template, here.n_vocab, dict))
    assert not found.parts
    assert found.n_compared == sum(len(here.encode(text).token_ids) for text in TEXTS)
    wrong = WRONG["soft cap of logits"].make(here).subject
    assert one(here, Vllm(Served(wrong), here.template, here.n_vocab, dict))[2:4] == (N_LAYERS, "log_probs")


def test_a_backend_is_called_what_it_is_given_as() -> None:
    """Not by a name of its own, by which two would be one, or one taken for the reference."""
    here = subject("Llama")
    mine = WRONG["another revision"].make(here)
    mine.name = "transformers"
    served = [Vllm(Served(here), here.template, here.n_vocab, dict) for _ in range(2)]
    found = saelake.compare(here, {"mine": mine, "one": served[0], "two": served[1]}, TEXTS)
    assert [(one.backend, one.parts) for one in found] == [("mine", True), ("one", False), ("two", False)]


@pytest.mark.parametrize("width", [3, 64, 5000])
def test_sketches_keep_distances(width: int) -> None:
    x = torch.randn(40, width, generator=torch.Generator().manual_seed(width))
    of = sketch(x)
    apart = np.linalg.norm(of[:20] - of[20:], axis=1) / np.linalg.norm((x[:20] - x[20:]).numpy(), axis=1)
    assert of.shape == (40, SKETCH)
    assert 0.85 < apart.mean() < 1.15
    assert (apart > 0.5).all()
    assert (sketch(x[:1]) == of[:1]).all()


def test_noise_is_of_the_dtype() -> None:
    here = subject("Llama")
    reads = Transformers(here).noisy(TEXTS[:1], [(0, "resid_pre"), (N_LAYERS, "log_probs")])
    clean = Transformers(here).read(TEXTS[:1], [(0, "resid_pre")]).values[0, "resid_pre"][0]
    off = [float(((read.values[0, "resid_pre"][0] - clean) / clean).abs().nan_to_num().max()) for read in reads]
    assert len(off) == PASSES
    assert all(0 < one <= 2 * torch.finfo(torch.float32).eps for one in off)


@pytest.mark.parametrize(
    ("backends", "texts", "expected"),
    [
        ({}, TEXTS, "there is nothing to compare: backends is empty"),
        ({"a": 5}, TEXTS, "a is a int: give a HookedTransformer"),
        ([5], TEXTS, r"backends is \[5\]: give \{name: model\}"),
        ({"transformers": 5}, TEXTS, "the backend transformers is the subject"),
        ({"a": 5}, "text", "texts is 'text': give a list of texts"),
        ({"a": 5}, [3], "prompt 0 is 3: give a text"),
    ],
)
def test_what_cannot_be_compared_is_said(backends: Any, texts: Any, expected: str) -> None:
    with pytest.raises(saelake.UserError, match=expected):
        saelake.compare(subject("Llama"), backends, texts)


def test_a_study_is_compared_and_its_readings_are_runs(tmp_path: Path) -> None:
    planted = write_planted(tmp_path / "study")
    command = ["compare", str(planted.recipe), "--lake", str(tmp_path / "lake"), "--prompts", "3", "--backends"]
    done = CliRunner().invoke(main, [*command, "padded,transformer_lens"])
    assert done.exit_code == 0, done.output
    for name in ("padded", "transformer_lens"):
        assert f"{name} reads what transformers reads, up to rounding" in done.output
    with saelake.open(tmp_path / "lake") as lake:
        found = partings(lake.query("backends"))
        assert [(one.backend, one.parts) for one in found] == [("padded", False), ("transformer_lens", False)]
        runs = lake.sql("select distinct run_id, backend, noise is null from readings order by backend").fetchall()
        assert [run[1:] for run in runs] == [("padded", True), ("transformer_lens", True), ("transformers", False)]
        lake.sql("select count(*) from readings join prompts using (prompt_id)").fetchall()
        records = {one.stage: one.config for one in current_records(lake.lake, lake.recipe)}
        assert records["readings_transformer_lens"]["version"] == version("transformer-lens")
    again = CliRunner().invoke(main, [*command, "transformer_lens"])
    assert again.exit_code == 0
    for backends, expected in (
        ("other", "there is no backend 'other': there are transformers, padded"),
        ("transformers", "name a backend beside transformers"),
        ("padded,padded", "the backend padded is named twice"),
    ):
        refused = CliRunner().invoke(main, [*command, backends])
        assert refused.exit_code
        assert expected in refused.output
    with saelake.open(tmp_path / "lake") as lake:
        stored = lake.sql("select * exclude run_id from readings where backend = 'padded'").to_arrow_table()
        moved = stored.set_column(stored.column_names.index("backend"), "backend", pa.array(["moved"] * len(stored)))
        places = zip(moved["layer"].to_pylist(), moved["site"].to_pylist(), moved["pos"].to_pylist(), strict=True)
        wrong = [place[0] >= 2 and place[2] >= 4 for place in places]
        sketches = [[2 * x for x in row] if bad else row for row, bad in zip(moved["sketch"].to_pylist(), wrong, strict=True)]
        moved = moved.set_column(
            moved.column_names.index("sketch"), "sketch", pa.array(sketches, READINGS.schema.field("sketch").type)
        )
        lake.write("readings", moved, about={"made": "by hand"})
        (row,) = partings(lake.query("backends", backend="moved"))
        assert (row.layer, row.pos) == (2, 4)
        assert row.difference == pytest.approx(1, rel=0.5)
