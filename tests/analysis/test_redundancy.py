"""Near-duplicates and woken features: cosines against NumPy, questions against what was planted."""

from itertools import combinations, product

import numpy as np
import pytest
import torch

from saelake.analysis.interactions.redundancy import pairs_above
from tests.analysis.effects import Analysed

CANDIDATES = "select layer, feature_id from features where layer >= 2 and feature_id in (5, 17, 11)"


def test_every_pair_stands_once() -> None:
    rows_kd = torch.nn.functional.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    first, second, cosine = pairs_above(rows_kd, rows_kd, -1.0, same=True)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == list(combinations(range(7), 2))
    np.testing.assert_allclose(cosine, (rows_kd @ rows_kd.T)[first, second], atol=1e-6)
    first, second, cosine = pairs_above(rows_kd[:3], rows_kd[3:], 0.1, same=False)
    expected = (rows_kd[:3] @ rows_kd[3:].T).numpy()
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == {
        (i, j) for i, j in product(range(3), range(4)) if expected[i, j] >= 0.1
    }


def test_decoder_cosines_are_those_of_the_saes(study: Analysed) -> None:
    rows = study.sql("select layer, feature_id, other_layer, other_feature_id, cosine from decoder_cosines")
    assert len(rows) == len({row[:4] for row in rows}) > 0
    for layer, feature_id, other_layer, other_id, cosine in rows:
        assert (layer, feature_id) < (other_layer, other_id)
        one, other = study.loaded.saes[layer].W_dec[feature_id].detach(), study.loaded.saes[other_layer].W_dec[other_id].detach()
        assert cosine == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)), abs=1e-5)
        assert cosine >= 0.3 - 1e-6
    settings, members = study.recipe.candidates, set()
    for direction in settings.directions:
        asked = {"k": settings.cap, "exclude_layers": list(settings.exclude_layers), "direction": direction}
        members |= set(study.ask("candidates", "layer, feature_id", **asked))
    unit = {one: torch.nn.functional.normalize(study.loaded.saes[one[0]].W_dec[one[1]].detach(), dim=0) for one in members}
    apart = {(*a, *b): float(unit[a] @ unit[b]) for a, b in combinations(sorted(members), 2)}
    assert {row[:4] for row in rows} == {pair for pair, cosine in apart.items() if cosine >= 0.3}, "each one, of any two layers"


def test_near_duplicates_fire_together_and_dormant_twins_do_not(study: Analysed) -> None:
    columns = "layer_a, feature_id_a, layer_b, feature_id_b, round(cosine::double, 3), n_a, n_b, n_both, jaccard"
    rows = study.ask("near_duplicates", columns, features=CANDIDATES, min_cosine=0.5)
    primary, backup = study.planted.primary, study.planted.backup
    by_pair = {row[:4]: row[4:] for row in rows}
    assert by_pair[2, primary, 3, primary] == (1.0, 24, 24, 24, 1.0)
    assert by_pair[2, primary, 4, backup] == (0.6, 24, 0, 0, 0.0)
    assert by_pair[2, backup, 3, backup] == (1.0, 0, 0, 0, None)
    assert set(study.ask("near_duplicates", columns, features=CANDIDATES, min_jaccard=0.5)) == {
        row for row in rows if row[1] == row[3] == primary
    }
    assert study.ask("near_duplicates", columns, features=f"2:{primary},4:{backup}") == [
        (2, primary, 4, backup, *by_pair[2, primary, 4, backup])
    ]


def test_only_the_backup_is_dormant(study: Analysed) -> None:
    every = "select layer, feature_id from features"
    rows = study.ask(
        "dormant", "layer, feature_id, n_prompts, n_silent, n_first, n_tokens = n_first + n_template + n_user", features=every
    )
    assert rows == [(4, study.planted.backup, 6, 6, 0, True), (5, study.planted.backup, 6, 6, 0, True)]
    assert study.ask("dormant", features=every, controls=True) == []
    ((prompt_id,),) = study.sql("select min(prompt_id) from waking_passes")
    of_prompt = f"select layer, feature_id from critical_features where prompt_id = {prompt_id}"
    rows = study.ask("dormant", "layer, feature_id, n_prompts, n_silent", features=of_prompt, prompt_id=prompt_id)
    assert rows == [(4, study.planted.backup, 1, 1), (5, study.planted.backup, 1, 1)]
