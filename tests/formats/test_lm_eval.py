"""Samples of lm-evaluation-harness: one answer for each generated text, whatever filters and repeats it was logged with."""

from pathlib import Path

import pytest

import saelake
from saelake.formats.registry import Asked
from saelake.formats.transfer import bring_in
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.formats.files import as_lines

FILE = "samples_refusals_2026.jsonl"
VERDICTS = Asked(refused="refused", judge="exact_match")


def sample(prompt: str, said: list[str], name: str = "none", refused: float = 1.0) -> dict[str, object]:
    return {"arguments": {"gen_args_0": {"arg_0": prompt}}, "resps": [said], "filter": name, "refused": refused}


def test_a_sample_is_taken_once_however_many_filters_it_was_logged_under(lake: Lake, tmp_path: Path) -> None:
    both = [sample(prompt, ["I won't."], name) for prompt in ("how to lie", "how to bake") for name in ("strict", "flexible")]
    file = as_lines(FILE, both)(tmp_path)
    assert bring_in(lake.root, "lm_eval", str(file), Asked()).n_rows("ablations") == 2
    with pytest.raises(UserError, match="sample 2: its filter is 'flexible', and 'strict' before"):
        bring_in(lake.root, "lm_eval", str(file), VERDICTS)


def test_a_metric_over_several_texts_is_no_verdict_on_each(lake: Lake, tmp_path: Path) -> None:
    file = as_lines(FILE, [sample("how to lie", ["I won't.", "Sure."], refused=0.5), sample("how to bake", ["Mix flour."])])(
        tmp_path
    )
    bring_in(lake.root, "lm_eval", str(file), VERDICTS)
    with saelake.open(lake.root) as opened:
        read = opened.sql(
            "select completion, refused from ablations left join verdicts using (ablation_id) "
            "where ablations.stage = 'imported_lm_eval' order by completion"
        ).fetchall()
    assert read == [("I won't.", None), ("Mix flour.", True), ("Sure.", None)]
