"""The noise floor of Algorithm 1's decisions: what rounding may turn is flagged, and little else."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.search import noise as noise_module
from saelake.analysis.search.noise import SMALLEST_P, STEPS, Noise, changes, in_float32, measured
from saelake.ingest.recipe import load_recipe
from saelake.ingest.saes.refs import list_saes
from saelake.ingest.saes.sae import load_sae
from saelake.ingest.subject import Subject
from tests.analysis.effects import Analysed
from tests.analysis.engines import tiny_subject
from tests.analysis.literal import literal_logits

TAUS = (0.1, 0.2, 0.4)
MANY_TAUS = np.geomspace(min(TAUS), max(TAUS), 40)
"""So many that some decisions differ on every processor: how bfloat16 is rounded depends on its kernels."""
PROMPTS = ("how to steal a violin", "how to hack a school", "how to burn a barn", "how to poison a lake")


def sequences(n_prompts: int, saes: Sequence[int], width: int) -> list[list[Request]]:
    """Random pools of all layers, from which blocks are taken one after another."""
    found = []
    for prompt in range(n_prompts):
        for seed in range(3):
            rng = np.random.default_rng([prompt, seed])
            ids = np.concatenate([np.full((1, 48), 177 if width > 177 else 1), rng.integers(0, width, (1, 48))]).ravel()
            pool = np.unique(np.stack([rng.choice(saes, 96), ids]), axis=1)
            order = rng.permutation(pool.shape[1])
            found.append([Request(prompt, FeatureSet.of(*pool[:, order[start:]])) for start in range(0, len(order) + 1, 6)])
    return found


class Dtypes:
    """The organism in float32 and bfloat16, and Algorithm 1's traces by both."""

    def __init__(self) -> None:
        recipe = load_recipe("organism")
        self.subjects = {
            dtype: Subject.load(recipe.model.model_copy(update={"dtype": dtype}), recipe.compute)
            for dtype in ("float32", "bfloat16")
        }
        self.saes = {ref.layer: load_sae(ref) for ref in list_saes(recipe) if ref.layer >= 2}
        self.prompts = [self.subjects["float32"].encode(text).token_ids for text in PROMPTS]
        self.sequences = sequences(len(PROMPTS), list(self.saes), 512)

    def traces(self, dtype: str) -> list[np.ndarray]:
        engine = AblationEngine(self.subjects[dtype], self.saes, self.prompts)
        return [engine.next_token(one).p_target.astype(np.float64) for one in self.sequences]

    def noise(self, dtype: str) -> Noise:
        return measured(self.subjects[dtype], self.saes, self.prompts, self.sequences[::2])


@pytest.fixture(scope="module")
def dtypes() -> Dtypes:
    return Dtypes()


def test_in_bfloat16_the_decisions_that_differ_are_flagged_and_few_others(dtypes: Dtypes) -> None:
    noise = dtypes.noise("bfloat16")
    n, differ, flagged, missed = 0, 0, 0, 0
    for exact, rounded in zip(dtypes.traces("float32"), dtypes.traces("bfloat16"), strict=True):
        change, by_rounding = changes(rounded), noise.of_changes(rounded)
        for tau in MANY_TAUS:
            is_flagged, is_other = np.abs(change - tau) <= by_rounding, (changes(exact) >= tau) != (change >= tau)
            n += len(change)
            differ += int(is_other.sum())
            flagged += int(is_flagged.sum())
            missed += int((is_other & ~is_flagged).sum())
    assert differ >= 3, "the study shows no decision that rounding turns"
    assert missed <= 0.2 * differ  # neighbouring thresholds share their decisions, so that misses come in clusters
    assert flagged <= 0.15 * n
    assert 1e-3 < noise.floor < 0.2
    assert noise.dtype > 0
    assert noise.n_decisions == sum(min(len(one) - 1, STEPS) for one in dtypes.sequences[::2])


@given(arrays(np.float64, 12, elements=st.floats(10 * SMALLEST_P, 1.0)))
def test_rounding_of_probabilities_to_float32_moves_no_change_further_than_is_said(p_target: np.ndarray) -> None:
    rounded = p_target.astype(np.float32).astype(np.float64)
    moved = np.abs(changes(rounded) - changes(p_target))
    said = Noise(0.0, 0.0, 0).of_changes(rounded)
    assert (moved <= said + 1e-12).all()
    assert (said <= 1e-6 * np.maximum(p_target[1:] / p_target[:-1], 1)).all(), "and no more than a few units in the last place"


def test_in_float32_the_floor_is_rounding_and_nothing_is_flagged(dtypes: Dtypes) -> None:
    noise = dtypes.noise("float32")
    assert noise.dtype == 0
    assert noise.floor < 2e-5
    for trace in dtypes.traces("float32"):
        assert all((np.abs(changes(trace) - tau) > noise.of_changes(trace)).all() for tau in TAUS)


def test_what_is_measured_does_not_depend_on_when(dtypes: Dtypes) -> None:
    assert dtypes.noise("bfloat16") == dtypes.noise("bfloat16")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_a_model_computes_in_float32_while_asked_to_and_is_itself_again(family: str, tmp_path: Path) -> None:
    rounded, exact = (tiny_subject(family, tmp_path / dtype, dtype) for dtype in ("bfloat16", "float32"))
    exact.model.load_state_dict({name: one.float() for name, one in rounded.model.state_dict().items()})
    prompt = rounded.encode("How do I pick a lock?").token_ids
    before = {name: one.clone() for name, one in rounded.model.state_dict().items()}
    with in_float32(rounded.model):
        wide = rounded.forward(rounded.batch([prompt]))
    expected = literal_logits(exact, {}, prompt, Request(0), len(prompt))
    torch.testing.assert_close(wide[0], expected, atol=1e-4, rtol=1e-4)
    for name, one in rounded.model.state_dict().items():
        assert one.dtype == before[name].dtype
        assert torch.equal(one, before[name])


def test_a_pass_that_fails_leaves_the_weights_as_they_were(tmp_path: Path) -> None:
    subject = tiny_subject("llama", tmp_path, "bfloat16")

    def fails(_resid_btd: torch.Tensor) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"), in_float32(subject.model), subject.resid_post(0, fails):
        subject.forward(subject.batch([[1, 2, 3]]))
    assert {one.dtype for one in subject.model.parameters()} == {torch.bfloat16}


def test_a_study_records_the_floor_beside_its_decisions(study: Analysed) -> None:
    floor, dtype, n = study.sql("select floor, dtype, n_decisions from noise")[0]
    assert (dtype, n > 0) == (0, True)
    assert floor < 1e-4
    traces: dict[tuple[int, int], list[tuple[float, float | None]]] = {}
    for prompt, seed, p, own in study.sql(
        "select prompt_id, seed, p_refusal_token, noise from search_trace order by prompt_id, seed, step"
    ):
        traces.setdefault((prompt, seed), []).append((p, own))
    assert all(one[0][1] is None and all(own is not None for _, own in one[1:]) for one in traces.values())
    for tau, n_decisions, n_accepted, n_uncertain, *_ in study.ask("uncertain"):
        moved = [(abs(a - b) / a, own) for one in traces.values() for (a, _), (b, own) in pairwise(one)]
        assert n_decisions == len(moved)
        assert n_accepted == sum(change >= tau for change, _ in moved)
        assert n_uncertain == sum(abs(change - tau) <= own for change, own in moved if own is not None)
    flags = study.sql("select stage, count(n_uncertain), count(*) from ablations group by stage")
    assert all(flagged == (n if stage == "algorithm1" else 0) for stage, flagged, n in flags)


def test_verdicts_that_hang_on_a_margin_within_the_floor_are_counted(study: Analysed) -> None:
    floor = study.sql("select floor from noise")[0][0]
    rows = study.sql(
        "select condition, label, a.margin, v.refused from verdicts v join ablations a using (ablation_id) "
        "join prompts using (prompt_id) where v.judge = 'first_token'"
    )
    assert rows
    assert all((margin > 0) == refused for *_, margin, refused in rows), "the verdict is the sign of the margin"
    for condition, label, n, n_uncertain, n_close, smallest, stored in study.ask("uncertain_verdicts"):
        mine = [abs(margin) for c, of, margin, _ in rows if (c, of) == (condition, label)]
        assert (n, smallest, stored) == (len(mine), min(mine), floor)
        assert (n_uncertain, n_close) == (sum(m <= floor for m in mine), sum(m <= 10 * floor for m in mine))


def test_in_bfloat16_the_first_tokens_that_differ_have_margins_within_the_floor(dtypes: Dtypes) -> None:
    floor, turned, near = dtypes.noise("bfloat16").floor, [], 0
    requests = [one for sequence in dtypes.sequences for one in sequence]
    exact, rounded = (
        AblationEngine(dtypes.subjects[dtype], dtypes.saes, dtypes.prompts).next_token(requests)
        for dtype in ("float32", "bfloat16")
    )
    for before, after in zip(exact.margin, rounded.margin, strict=True):
        near += abs(after) <= floor
        turned += [abs(after)] if (before > 0) != (after > 0) else []
    assert all(margin <= 3 * floor for margin in turned), "what turns lies near the floor"
    assert near < len(requests) / 4


def test_the_floor_is_what_one_change_in_twenty_exceeds_rounded_up_to_two_digits() -> None:
    """Every change of one evaluation is moved by a known difference of log-odds."""
    rng = np.random.default_rng(2)
    before, after, moved = rng.uniform(0.6, 0.9, 200), rng.uniform(0.2, 0.5, 200), rng.uniform(1e-4, 1e-3, 200)
    by_odds, held = after / before * ((1 - before) + (1 - after)), after / before * 2 * np.finfo(np.float32).eps
    p, others = np.stack([before, after], 1), np.stack([before, after - before * (moved * by_odds + held)], 1)
    literal = float(np.quantile(moved, 0.95))
    found = noise_module._exceeded_by_few(list(p), list(others))
    assert literal <= found + 1e-9
    assert found == pytest.approx(np.ceil(literal * 1e5) / 1e5), "1e-4 to 1e-3: two digits are the fifth place"
    assert noise_module._exceeded_by_few(list(p), list(p)) == noise_module._exceeded_by_few([], []) == 0
    few = [np.array([0.5, 0.25]), np.array([0.5, 0.25])]
    assert noise_module._exceeded_by_few(few, [np.array([0.5, 0.25]), np.array([0.5, 0.2501])]) > 0
