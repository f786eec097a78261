"""R4: the cosines are those of a literal pass, and the bands those of SciPy."""

import numpy as np
import pytest
import torch
from scipy import stats

from tests.analysis.effects import Analysed
from tests.planted import ablate, prompt_ids


def test_cosines_are_those_of_the_literal_pass(study: Analysed) -> None:
    own = {layer: torch.tensor(vector) for layer, vector in study.sql("select layer, vector from directions")}
    ((chosen,),) = study.sql("select layer from directions where chosen")
    found = study.sql("select text, direction, layer, cosine from layer_cosines join prompts using (prompt_id) order by all")
    texts = {row[0] for row in found}
    assert len(found) == len(texts) * 2 * len(own) == 12 * 2 * 6
    last = {text: ablate(study.loaded, prompt_ids(study.loaded, text), [()]).resid_bltd[0, :, -1] for text in texts}
    for text, direction, layer, cosine in found:
        vector = own[layer] if direction == "own" else own[chosen]
        assert cosine == pytest.approx(float(torch.cosine_similarity(last[text][layer], vector, dim=0)), abs=1e-5)


@pytest.mark.parametrize("direction", ["own", "chosen"])
def test_bands_and_separation_are_scipys(study: Analysed, direction: str) -> None:
    rows = study.ask("direction_by_layer", direction=direction)
    assert [(row[0], row[1]) for row in rows] == [(layer, label) for layer in range(6) for label in ("harmful", "benign")]
    for layer, label, n, mean, _, low, high, separation, is_chosen in rows:
        sides = {
            name: np.array(
                study.sql(
                    f"select cosine from layer_cosines join prompts using (prompt_id) "
                    f"where layer = {layer} and direction = '{direction}' and label = '{name}'"
                )
            ).ravel()
            for name in ("harmful", "benign")
        }
        cosines = sides[label].astype(np.float64)
        band = stats.t.interval(0.95, n - 1, loc=cosines.mean(), scale=stats.sem(cosines))
        assert mean == pytest.approx(cosines.mean())
        assert high - low == pytest.approx(band[1] - band[0], rel=2e-3)
        assert (high + low) / 2 == pytest.approx(mean)
        u = stats.mannwhitneyu(sides["harmful"], sides["benign"]).statistic
        assert separation == pytest.approx(u / len(sides["harmful"]) / len(sides["benign"]))
        assert is_chosen == (layer == 2)


def test_harmful_lies_higher_from_the_layer_that_writes_the_primary(study: Analysed) -> None:
    means = {(layer, label): mean for layer, label, mean in study.ask("direction_by_layer", "layer, label, mean")}
    assert all(means[layer, "harmful"] > 30 * abs(means[layer, "benign"]) for layer in range(2, 6))
    assert all(abs(means[layer, "harmful"]) < 1e-3 for layer in (0, 1))
