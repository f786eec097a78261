"""LoRA adapters are merged as PEFT defines them, and anything more than plain LoRA is refused; models may lie in a package."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from saelake.ingest.fingerprint import fingerprint
from saelake.ingest.recipe.sections import ModelSpec
from saelake.ingest.subject import Subject
from saelake.warehouse.errors import UserError
from tests.ingest.tiny import save_model

RANK, ALPHA = 3, 6
NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
PROMPT = [1, 2, 3, 4, 5]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model("llama", tmp_path / "model")
    return tmp_path / "model"


def matrices(model: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Random A (r, d) and B (o, r) for two projections."""
    network = Subject.load(model).model
    draw = torch.Generator().manual_seed(0)
    found = {}
    for name in NAMES:
        projection = network.get_submodule(name)
        assert isinstance(projection, nn.Linear)
        A_rd = torch.randn(RANK, projection.in_features, generator=draw)
        found[name] = (A_rd, torch.randn(projection.out_features, RANK, generator=draw))
    return found


def write(folder: Path, known: dict[str, tuple[Tensor, Tensor]], prefix: str = "base_model.model.", **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    weights: dict[str, Tensor] = {}
    for name, (A_rd, B_or) in known.items():
        weights |= {f"{prefix}{name}.lora_A.weight": A_rd, f"{prefix}{name}.lora_B.weight": B_or}
    save_file(weights, folder / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "target_modules": ["q_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(content | config), "utf-8")
    return folder


@pytest.mark.parametrize(("stabilised", "scale"), [(False, ALPHA / RANK), (True, ALPHA / RANK**0.5)])
def test_a_merged_model_says_what_the_matrices_beside_the_weights_say(
    model: Path, tmp_path: Path, stabilised: bool, scale: float
) -> None:
    known = matrices(model)
    adapter = write(tmp_path / "adapter", known, use_rslora=stabilised)
    plain, adapted = Subject.load(model), Subject.load(model, adapter=adapter)
    batch = plain.batch([PROMPT])
    untouched = plain.forward(batch)
    for name, (A_rd, B_or) in known.items():

        def beside(_: Any, given: Any, out: Tensor, A_rd: Tensor = A_rd, B_or: Tensor = B_or) -> Tensor:
            return out + scale * (given[0] @ A_rd.T @ B_or.T)

        plain.model.get_submodule(name).register_forward_hook(beside)
    wanted = plain.forward(batch)
    assert not torch.allclose(untouched, wanted, atol=0.1)
    torch.testing.assert_close(adapted.forward(batch), wanted, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_a_tied_unembedding_leaves_the_embeddings_as_they_are(tmp_path: Path) -> None:
    folder = save_model("gemma2", tmp_path / "model")
    plain = Subject.load(folder)
    head, embeddings = plain.model.get_output_embeddings(), plain.model.get_input_embeddings()
    assert head.weight is embeddings.weight, "they are tied"
    draw = torch.Generator().manual_seed(0)
    A_rd, B_or = (torch.randn(*shape, generator=draw) for shape in ((RANK, head.in_features), (head.out_features, RANK)))
    adapted = Subject.load(folder, adapter=write(tmp_path / "adapter", {"lm_head": (A_rd, B_or)}))
    assert torch.equal(adapted.model.get_input_embeddings().weight, embeddings.weight)
    wanted = head.weight + ALPHA / RANK * (B_or @ A_rd)
    torch.testing.assert_close(adapted.model.get_output_embeddings().weight, wanted, atol=1e-5, rtol=1e-5)
    batch = plain.batch([PROMPT])
    (resid_btd,) = adapted.read_resid_post(batch, [1]).values()
    torch.testing.assert_close(resid_btd, plain.read_resid_post(batch, [1])[1])
    head.weight = nn.Parameter(wanted.detach(), requires_grad=False)
    torch.testing.assert_close(adapted.forward(batch), plain.forward(batch), atol=1e-4, rtol=1e-4)


def test_a_model_is_known_by_its_adapter_too(model: Path, tmp_path: Path) -> None:
    known = matrices(model)
    one = write(tmp_path / "one", known)
    other = write(tmp_path / "other", {name: (A_rd, 2 * B_or) for name, (A_rd, B_or) in known.items()})
    again = write(tmp_path / "again", known)
    bare, *adapted = (
        fingerprint(ModelSpec(path=model, adapter=folder, refusal_tokens=("I",))) for folder in (None, one, other, again)
    )
    assert adapted[0] == adapted[2]
    assert len({bare, *adapted}) == 3
    assert all(str(tmp_path) not in name for name in adapted)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"use_dora": True}, "has use_dora = True: adapters of plain LoRA alone are merged"),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save = \['lm_head'\]"),
        ({"peft_type": "IA3"}, "has peft_type = 'IA3'"),
        ({"lora_alpha": "much"}, "has lora_alpha = 'much', which is not a number"),
        ({"rank_pattern": {"q_proj": 2}}, "has rank_pattern"),
    ],
)
def test_more_than_plain_lora_is_refused(model: Path, tmp_path: Path, config: dict[str, Any], sentence: str) -> None:
    adapter = write(tmp_path / "adapter", matrices(model), **config)
    with pytest.raises(UserError, match=rf"^model\.adapter: .*{sentence}"):
        Subject.load(model, adapter=adapter)


def test_an_adapter_of_another_model_is_told(model: Path, tmp_path: Path) -> None:
    known = matrices(model)
    first = NAMES[0]
    A_rd, B_or = known[first]
    wrong: list[tuple[dict[str, tuple[Tensor, Tensor]], str]] = [
        ({first: (A_rd[:, :-1].contiguous(), B_or)}, "it is an adapter of another model"),
        ({"model.layers.77.self_attn.q_proj": (A_rd, B_or)}, "is not a linear projection of the model"),
        ({first: (A_rd.log(), B_or)}, "not finite"),
        ({}, "has no matrices"),
    ]
    for number, (matrices_of, sentence) in enumerate(wrong):
        with pytest.raises(UserError, match=sentence):
            Subject.load(model, adapter=write(tmp_path / str(number), matrices_of))
    with pytest.raises(UserError, match=r"has weights 'q_proj\.lora_A"):
        Subject.load(model, adapter=write(tmp_path / "odd", {"q_proj": (A_rd, B_or)}, prefix=""))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no adapter_config\.json in .*empty"):
        Subject.load(model, adapter=tmp_path / "empty")


def test_a_model_may_lie_in_an_installed_package(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "a_model_in_a_package"
    package.parent.mkdir()
    model.rename(package)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(package.parent))
    spec = ModelSpec(package="a_model_in_a_package")
    assert spec.folder == package
    assert fingerprint(spec) == fingerprint(ModelSpec(path=package))
    assert Subject.load(spec).n_layers == Subject.load(package).n_layers
    absent = ModelSpec(package="no_such_package_anywhere")
    with pytest.raises(UserError, match=r"^model\.package: no_such_package_anywhere is not installed here"):
        Subject.load(absent)
    for name in ("os.path", "../etc", "a-b", ""):
        with pytest.raises(ValueError, match="package"):
            ModelSpec(package=name)
