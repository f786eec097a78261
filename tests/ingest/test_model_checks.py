"""Models that the engine cannot run exactly are refused, and what they have learned too little of is told."""

from typing import Any

import pytest
import transformers

import saelake
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import Request
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from saelake.warehouse.errors import UserError
from tests.analysis.test_families import sae_at, subject_of
from tests.ingest.families import N_LAYERS
from tests.ingest.tiny import word_tokenizer


@pytest.mark.parametrize(
    ("name", "config"),
    [("Lfm2", {"layer_types": ["conv", "full_attention", "conv"]}), ("Mamba", {}), ("Jamba", {"num_experts": 2})],
)
def test_models_with_other_states_than_keys_and_values_are_refused(name: str, config: dict[str, Any]) -> None:
    tokenizer = word_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
    }
    made = getattr(transformers, f"{name}Config")(**sizes, **config)
    model = getattr(transformers, f"{name}ForCausalLM")(made)
    with pytest.raises(
        UserError, match=f"a {name}ForCausalLM has layers that are not attention.*attention and MLP alone are supported"
    ):
        Subject(model, tokenizer)


def test_models_whose_layers_share_keys_and_values_are_refused() -> None:
    tokenizer = word_tokenizer()

    def gemma4(n_shared: int) -> transformers.PreTrainedModel:
        sizes = {
            "vocab_size": len(tokenizer),
            "vocab_size_per_layer_input": len(tokenizer),
            "pad_token_id": 0,
            "sliding_window": 6,
        }
        sizes |= {
            "hidden_size": 32,
            "intermediate_size": 48,
            "hidden_size_per_layer_input": 8,
            "head_dim": 8,
            "global_head_dim": 8,
        }
        sizes |= {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "num_kv_shared_layers": n_shared}
        kinds = ["sliding_attention", "full_attention"] * 2
        return transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**sizes, layer_types=kinds))

    Subject(gemma4(0), tokenizer)
    with pytest.raises(UserError, match="a Gemma4ForCausalLM has layers that attend to keys and values of a layer below them"):
        Subject(gemma4(2), tokenizer)


@pytest.mark.parametrize("family", ["GPT-2", "OPT"])
def test_learned_positions_that_run_out_are_told_before_the_pass(family: str) -> None:
    subject = subject_of(family)
    assert subject.n_positions == 64
    ids = subject.encode("I " * 50).token_ids
    engine = AblationEngine(subject, {}, [ids])
    fits = 64 - len(ids) + 1  # the last token is not read
    engine.answer([Request(0)], fits)
    too_long = f"a prompt of {len(ids)} tokens and {fits} of its answer need more positions than the 64"
    with pytest.raises(UserError, match=too_long):
        engine.answer([Request(0)], fits + 1)
    for most in (None, 512, 100):
        limited = Subject(subject.model, subject.tokenizer, max_prompt_tokens=most)
        with pytest.raises(UserError, match=r"has .* tokens, but the model has learned 64 positions: leave the prompt out"):
            limited.encode("I " * 64)
    public = saelake.Engine(subject, [sae_at(Site(0))])
    passes: list[object] = []
    averaged = saelake.MeanAblate(0, [1], ["I I"])
    with subject.resid_post(0, passes.append), pytest.raises(UserError, match=too_long):
        public.activations(["I " * 50], edits=[averaged], max_new_tokens=fits)
    with subject.resid_post(0, passes.append), pytest.raises(UserError, match=too_long):
        public.answer(["I " * 50], edits=[averaged], max_new_tokens=fits + 1)
    assert passes == [], "no mean is computed first"
