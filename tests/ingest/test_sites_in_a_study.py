"""A study whose SAEs read and write at other sites than the residual stream after a block: captured as hooked by hand."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

import saelake
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.study_context import StudyContext
from saelake.ingest.job import ingest_study
from saelake.ingest.recipe import Recipe
from saelake.ingest.sites import Site
from saelake.ingest.study import open_study
from saelake.warehouse.errors import UserError
from tests.analysis.engines import tiny_subject
from tests.ingest.small_study import lake_in, sql, write_study
from tests.ingest.tiny import D_MODEL, save_sae

SAES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "mlp_out": (1, "jumprelu", {"hook_name": "blocks.1.hook_mlp_out"}),
    "transcoder": (1, "transcoder", {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}),
    "heads": (2, "gated", {"hook_name": "blocks.2.attn.hook_z"}),
    "attention": (0, "standard", {"hook_name": "blocks.0.hook_attn_out"}),
    "before": (0, "jumprelu", {"hook_name": "blocks.0.hook_resid_pre"}),
}
MODULES = {
    "mlp_out": ("layers.1.mlp", "out"),
    "transcoder": ("layers.1.mlp", "in"),
    "heads": ("layers.2.self_attn.o_proj", "in"),
    "attention": ("layers.0.self_attn", "out"),
    "before": ("layers.0", "in"),
}


def write(folder: Path) -> Recipe:
    recipe = write_study(folder, "llama")
    content = recipe.model_dump(exclude={"saes", "more_saes"}, exclude_unset=True)
    groups = []
    for seed, (name, (layer, architecture, metadata)) in enumerate(SAES.items(), start=20):
        more: dict[str, Any] = {"d_out": D_MODEL, "apply_b_dec_to_input": False} if architecture == "transcoder" else {}
        if name == "heads":
            more["reshape_activations"] = "hook_z"
        save_sae(folder / name, architecture, layer, metadata=metadata, seed=seed, **more)
        groups.append({"path": folder / name, "layers": [layer]})
    return Recipe.model_validate(content | {"saes": groups})


def test_every_site_is_captured_and_ablated_in_a_study(tmp_path: Path) -> None:
    study, lake = open_study(write(tmp_path)), lake_in(tmp_path)
    record = ingest_study(study, lake)
    context = StudyContext(study, lake)
    names = {ref.sae_id: Path(str(ref.path)).name for ref in study.saes}
    with sql(lake, record) as con:
        hooks = {names[i]: (hook, out) for i, hook, out in con.execute("select sae_id, hook, hook_out from saes").fetchall()}
        rows = con.execute(
            "select sae_id, prompt_id & 4294967295 as place, pos, feature_id, activation from activations"
        ).fetchnumpy()
    assert hooks == {name: (meta["hook_name"], meta.get("hook_name_out")) for name, (_, _, meta) in SAES.items()}
    by_name = {names[sae.sae_id]: sae for sae in context.saes.values()}
    for place, ids in enumerate(context.token_ids):
        seen = read_by_hand(context, ids)
        for name, sae in by_name.items():
            chosen = (rows["sae_id"].astype(str) == sae.sae_id) & (rows["place"] == place)
            dense_tf = torch.zeros(len(ids), sae.width)
            dense_tf[rows["pos"][chosen].astype(int), rows["feature_id"][chosen].astype(int)] = torch.tensor(
                rows["activation"][chosen]
            )
            torch.testing.assert_close(dense_tf, sae.encode(seen[name]), atol=1e-4, rtol=1e-4, msg=name)
    number = {sae.sae_id: n for n, sae in context.saes.items()}
    clean = context.engine.log_probabilities([Request(0)])
    for sae in by_name.values():
        held = FeatureSet.of([number[sae.sae_id]] * sae.width, range(sae.width))
        assert not torch.allclose(context.engine.log_probabilities([Request(0, held)]), clean, atol=1e-4)


def read_by_hand(context: StudyContext, ids: list[int]) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any, out: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            found = given if MODULES[name][1] == "in" else out if isinstance(out, torch.Tensor) else out[0]
            seen[name] = found[0].detach().clone()

        return hook

    with torch.no_grad(), ExitStack() as hooks:
        for name, (module, _) in MODULES.items():
            part = context.subject.model.model.get_submodule(module)
            hooks.callback(part.register_forward_hook(keep(name), with_kwargs=True).remove)
        context.subject.model(torch.tensor([ids]), use_cache=False)
    return seen


def test_an_sae_of_a_site_that_the_model_has_not_is_refused_before_any_pass(tmp_path: Path) -> None:
    recipe = write_study(tmp_path, "gpt_neox")
    save_sae(tmp_path / "mid", layer=1, metadata={"hook_name": "blocks.1.hook_resid_mid"})
    content = recipe.model_dump(exclude={"saes", "more_saes"}, exclude_unset=True)
    recipe = Recipe.model_validate(content | {"saes": {"path": tmp_path / "mid", "layers": [1]}})
    with pytest.raises(
        UserError, match="resid_mid of layer 1 cannot be used in this model: in a GPTNeoXLayer attention and MLP read"
    ):
        ingest_study(open_study(recipe), lake_in(tmp_path))


def test_hook_mlp_in_is_a_site_only_where_the_model_names_it_too(tmp_path: Path) -> None:
    """TransformerLens means the residual stream before the norm by it, Gemma Scope 2 what comes after."""
    theirs = {"hook_name": "blocks.1.hook_mlp_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    named = theirs | {"hf_hook_name": "model.layers.1.pre_feedforward_layernorm.output"}
    more: dict[str, Any] = {"d_out": D_MODEL, "apply_b_dec_to_input": False}
    given = saelake.Engine(subject := tiny_subject("llama", tmp_path / "model"), [loaded(tmp_path, "named", named, more)])
    assert [sae.reads for sae in given.saes.values()] == [Site(1, "mlp_in")]
    with pytest.raises(UserError, match=r"blocks\.1\.hook_mlp_in is not a site"):
        saelake.Engine(subject, [loaded(tmp_path, "theirs", theirs, more)])


def loaded(folder: Path, name: str, metadata: dict[str, Any], more: dict[str, Any]) -> SAE:
    return SAE.load_from_disk(save_sae(folder / name, "transcoder", layer=1, metadata=metadata, **more))
