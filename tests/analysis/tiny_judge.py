"""A stand-in for the HarmBench classifier: a tiny random Llama with the words Yes and No, laid out as the hub's cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saelake.analysis.judges.harmbench import Classifier
from tests.ingest.tiny import as_hub_cache, empty_offline_hub, llama3_tokenizer, make_model

REPOSITORY = "org/judge"
COMMIT = "c" * 40
TEMPLATE = "[INST] Does it?\nAsked: {behavior}\nAnswered: {generation}\nSay yes or no. [/INST]"
CARD = f'''\
# A stand-in for the classifier's model card

Some text with {{behavior}} and {{generation}} that is no code.

```python
TEMPLATES = {{
    "description": "two of them",
    "plain": """{TEMPLATE}""",
    "contextual": """In {{context}}: {{behavior}} {{generation}}""",
}}
```

```python
inputs = [TEMPLATES["plain"].format(behavior=behavior, generation=g) for g in [one, two, ....]]
```
'''


def lay_out_judge(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The classifier in an offline hub cache; returns its folder."""
    folder = as_hub_cache(empty_offline_hub(hub, monkeypatch), REPOSITORY, COMMIT)
    tokenizer: PreTrainedTokenizerFast = llama3_tokenizer()
    tokenizer.add_tokens(["Yes", "No", "yes"])
    model = make_model("llama", tokenizer)
    assert isinstance(model, LlamaForCausalLM)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


def plant(classifier: Classifier, logits_of: Callable[[str], dict[str, float]]) -> list[str]:
    """Makes the next-token logits `logits_of(what it was put)`, and -9 for all other tokens; lists what it was put."""
    put: list[str] = []

    def hook(_module: Any, _args: Any, kwargs: dict[str, torch.Tensor], output: Any) -> Any:
        output.logits[:] = -9
        for row, (ids, mask) in enumerate(zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True)):
            put.append(classifier.tokenizer.decode(ids[mask.bool()]))
            for token, logit in logits_of(put[-1]).items():
                output.logits[row, -1, classifier.tokenizer.convert_tokens_to_ids(token)] = logit
        return output

    classifier.model.register_forward_hook(hook, with_kwargs=True)
    return put
