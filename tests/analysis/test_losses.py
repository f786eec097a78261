"""R16: cross-entropy against a literal loop, one token at a time, with the literal intervention."""

from itertools import groupby, product
from typing import Any

import numpy as np
import pytest
import torch

from saelake.analysis.engine.requests import DirectionEdit, FeatureSet, Request
from saelake.analysis.engine.slices import SliceCache
from saelake.analysis.interactions import losses as module
from saelake.ingest.recipe.effects import TextSet
from saelake.ingest.saes.refs import list_saes
from saelake.ingest.saes.sae import Sae, load_sae
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from saelake.ingest.texts import read_texts
from saelake.warehouse.errors import UserError
from tests.analysis.effects import TEXTS, Analysed
from tests.analysis.literal import literal_logits


def requests(study: Analysed) -> dict[tuple[str, int | None], Request]:
    """(condition, donor) -> what acts"""
    ((vector,),) = study.sql("select vector from directions where chosen")
    found: dict[tuple[str, int | None], Request] = {
        ("none", None): Request(0),
        ("direction", None): Request(0, direction=DirectionEdit(np.array(vector, dtype=np.float32), tuple(map(Site, range(6))))),
    }
    members = study.sql(
        "select prompt_id, layer, feature_id from critical_features where method = 'minimal' and start = 0 "
        "and prompt_id in (select donor from losses) order by all"
    )
    for donor, rows in groupby(members, lambda row: row[0]):
        pairs = [(layer, feature_id) for _, layer, feature_id in rows]
        found["minimal", donor] = Request(0, FeatureSet.of(*zip(*pairs, strict=True)))
    return found


def test_losses_equal_a_literal_loop_over_tokens(study: Analysed, subject: Subject, saes: dict[int, Sae]) -> None:
    texts = {spec.set: read_texts(spec, subject) for spec in study.recipe.losses.texts}
    asked = requests(study)
    assert len(asked) == 2 + 3
    rows = study.sql("select texts, text_number, condition, donor, n_context, n_tokens, loss, kl from losses")
    assert len(rows) == len(asked) * (4 + 3)
    divergences = []
    for name, number, condition, donor, n_context, n_tokens, loss, kl in rows:
        text = texts[name][number]
        nll, apart = [], []
        for t in range(text.n_context, len(text.token_ids)):
            seen = text.token_ids[:t]
            log_p = literal_logits(subject, saes, seen, asked[condition, donor], len(seen)).log_softmax(-1)
            clean = literal_logits(subject, saes, seen, Request(0), len(seen)).log_softmax(-1)
            nll.append(-float(log_p[text.token_ids[t]]))
            apart.append(float((clean.exp() * (clean - log_p)).sum()))
        assert (n_context, n_tokens) == (text.n_context, len(nll))
        assert loss == pytest.approx(np.mean(nll), abs=2e-3, rel=1e-3), (name, number, condition)
        assert kl == pytest.approx(np.mean(apart), abs=2e-3, rel=1e-2), (name, number, condition)
        divergences.append(kl)
    assert max(divergences) > 0.05, "some intervention moves what is expected"


def test_bos_or_the_templated_prompt_is_context_only(study: Analysed, subject: Subject) -> None:
    plain, answers = (read_texts(spec, subject) for spec in study.recipe.losses.texts)
    assert [t.n_context for t in plain] == [1] * 4
    assert all(t.token_ids[0] == subject.tokenizer.bos_token_id for t in plain)
    assert [t.is_cut for t in plain] == [False, False, True, False]
    assert max(len(t.token_ids) for t in plain) == 10
    assert len(answers) == 3, "only the first ones"
    for text, row in zip(answers, TEXTS, strict=False):
        context = subject.encode(row["said"]).token_ids
        assert text.token_ids[: text.n_context] == context
        assert text.n_counted == len(row["answer"].split())


def test_the_question_sums_up_over_texts_then_sets(study: Analysed) -> None:
    rows = study.ask("losses", "texts, condition, n_texts, n_sets, loss, sd, added, n_control, control_refused")
    assert [(row[0], row[1]) for row in rows] == [(t, c) for t in ("answers", "plain") for c in ("none", "direction", "minimal")]
    values: dict[tuple[str, str], dict[int | None, list[float]]] = {}
    for texts, condition, donor, loss in study.sql("select texts, condition, donor, loss from losses"):
        values.setdefault((texts, condition), {}).setdefault(donor, []).append(loss)
    for texts, condition, n_texts, n_sets, loss, sd, added, n_control, control_refused in rows:
        means = [np.mean(one) for one in values[texts, condition].values()]
        assert (n_texts, n_sets) == ({"answers": 3, "plain": 4}[texts], 3 if condition == "minimal" else 0)
        assert loss == pytest.approx(np.mean(means))
        assert sd == (pytest.approx(np.std(means, ddof=1)) if n_sets else None)
        assert added == pytest.approx(loss - np.mean(values[texts, "none"][None]))
        assert (n_control, control_refused) == (6, 0)


def test_interventions_leave_text_without_refusal_alone_and_harm_refusals(study: Analysed) -> None:
    rows = study.sql(
        "select l.text_number, l.condition, l.loss - n.loss from losses as l join losses as n using (texts, text_number) "
        "where l.texts = 'answers' and l.condition <> 'none' and n.condition = 'none'"
    )
    assert {(number, condition) for number, condition, _ in rows} == set(product(range(3), ("direction", "minimal")))
    for number, condition, added in rows:
        assert (added > 0.5) if number == 1 else (abs(added) < 0.05), (number, condition)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"text": "absent"}, "texts 'some', row 1: column 'absent' holds no text: the columns are said, answer"),
        ({"text": "answer", "prompt": "said", "max_tokens": 2}, "no row has a token to predict within max_tokens = 2"),
    ],
)
def test_wrong_texts_are_refused_in_a_sentence(study: Analysed, subject: Subject, fields: dict[str, Any], sentence: str) -> None:
    spec = TextSet(set="some", file=study.planted.folder / "texts.jsonl", **fields)
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")):
        read_texts(spec, subject)


def test_a_source_that_may_move_is_refused() -> None:
    for fields in ({"hub": "some/set"}, {"url": "https://example.org/x.jsonl"}):
        with pytest.raises(ValueError, match="so that everyone reads the same rows"):
            TextSet.model_validate({"set": "some"} | fields)


def test_left_padding_and_batches_do_not_matter(study: Analysed, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = read_texts(study.recipe.losses.texts[0], subject)
    slices = {ref.layer: SliceCache(load_sae(ref)) for ref in list_saes(study.recipe)}
    request = Request(0, FeatureSet.of([2, 4], [5, 17]))
    together = module.losses(subject, slices, texts, [request])[0].loss
    monkeypatch.setattr(module, "LOGITS", 1)
    alone = module.losses(subject, slices, texts, [request])[0].loss
    torch.testing.assert_close(torch.from_numpy(together), torch.from_numpy(alone), atol=2e-3, rtol=1e-3)


def test_kl_is_that_of_the_literal_distributions_and_none_of_the_unmodified_model(
    study: Analysed, subject: Subject, saes: dict[int, Sae]
) -> None:
    """The mean over a text's counted tokens of KL(unmodified || edited), over the whole vocabulary."""
    texts = {spec.set: read_texts(spec, subject) for spec in study.recipe.losses.texts}
    asked = requests(study)
    rows = study.sql("select texts, text_number, method, donor, kl from losses")
    assert len(rows) == len(asked) * (4 + 3)
    assert {round(kl, 6) for *_, method, _, kl in rows if method == "none"} == {0.0}
    assert max(kl for *_, kl in rows) > 0.1
    for name, number, method, donor, kl in rows[::3]:
        text = texts[name][number]
        found = []
        for t in range(text.n_context, len(text.token_ids)):
            seen = text.token_ids[:t]
            clean, edited = (
                literal_logits(subject, saes, seen, one, len(seen)).double().log_softmax(-1).flatten()
                for one in (Request(0), asked[method, donor])
            )
            found.append(float((clean.exp() * (clean - edited)).sum()))
        assert kl == pytest.approx(float(np.mean(found)), abs=2e-4)
