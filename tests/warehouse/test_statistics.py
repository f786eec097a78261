"""Per-feature statistics, summed up while publishing, equal plain SQL over what was published."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelake.warehouse.catalog import connect
from saelake.warehouse.check import check
from saelake.warehouse.lake import Lake
from saelake.warehouse.statistics import FeatureStatistics
from saelake.warehouse.synth import Shape, synthesize
from tests.warehouse.toys import ingest_with_two_saes

TAG = 7 << 32
IN_SQL = """
with firing as (
    select a.*, t.role = 'bos' as is_bos, p.label
    from activations a join tokens t using (prompt_id, pos) join prompts p using (prompt_id)
),
summed as (
    select
        sae_id,
        feature_id,
        count(*) filter (not is_bos) as n_tokens,
        count(*) filter (is_bos) as n_bos,
        count(distinct prompt_id) filter (not is_bos) as n_prompts,
        count(distinct prompt_id) filter (not is_bos and label = 'harmful') as n_harmful,
        count(distinct prompt_id) filter (not is_bos and label = 'benign') as n_benign,
        avg(activation::double) filter (not is_bos) as mean_activation,
        max(activation) filter (not is_bos) as max_activation
    from firing
    group by all
)
select
    f.sae_id, f.feature_id, f.n_tokens, f.n_bos, f.n_prompts, f.n_harmful, f.n_benign, f.mean_activation, f.max_activation,
    coalesce(s.n_tokens, 0), coalesce(s.n_bos, 0), coalesce(s.n_prompts, 0), coalesce(s.n_harmful, 0), coalesce(s.n_benign, 0),
    s.mean_activation, s.max_activation
from features f left join summed s using (sae_id, feature_id)
order by all
"""
L0 = """
select sae_id, measured_l0, count(activation) / (select count(*) from tokens where role <> 'bos')
from saes
left join (activations semi join (from tokens where role <> 'bos') using (prompt_id, pos)) using (sae_id)
group by all
"""


@settings(max_examples=8)
@given(
    n_prompts=st.integers(1, 12),
    tokens_per_prompt=st.integers(2, 9),
    width=st.integers(1, 40),
    density=st.floats(0.01, 0.6),
    zipf=st.floats(0, 2),
    shard_prompts=st.integers(1, 12),
    rounding=st.sampled_from(["bfloat16", "float32"]),
    two_saes=st.booleans(),
    prompt_major=st.booleans(),
)
def test_statistics_equal_sql(
    n_prompts: int,
    tokens_per_prompt: int,
    width: int,
    density: float,
    zipf: float,
    shard_prompts: int,
    rounding: str,
    two_saes: bool,
    prompt_major: bool,
) -> None:
    """Of one SAE a layer, or of two, whose features have the same numbers."""
    shape = Shape(n_prompts, tokens_per_prompt, 2, width, density * width, zipf, rounding, prompt_major, shard_prompts)
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake.create(Path(folder) / "lake")
        (ingest_with_two_saes if two_saes else synthesize)(lake, shape)
        assert check(lake) == []
        with connect(lake) as con:
            rows = con.execute(IN_SQL).fetchall()
            for _, measured, counted in con.execute(L0).fetchall():
                assert measured == pytest.approx(counted, rel=1e-6)
            if prompt_major:
                copied = con.execute("from activations_by_prompt order by all").fetchall()
                assert copied == con.execute("from activations order by all").fetchall()
    assert len(rows) == 2 * width + (2 * max(width // 2, 1) if two_saes else 0)
    for _, _, *values in rows:
        published, in_sql = values[:7], values[7:]
        assert published[:5] == in_sql[:5]
        assert published[5] == pytest.approx(in_sql[5], rel=1e-6) if in_sql[5] is not None else published[5] is None
        assert published[6] == in_sql[6]


def test_a_synthetic_lake_has_the_shape_that_was_asked_for(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    shape = Shape(n_prompts=60, n_layers=2, width=2048, l0=30, shard_prompts=20)
    record = synthesize(lake, shape)
    with connect(lake) as con:
        l0 = con.execute("select measured_l0 from saes").fetchall()
        assert all(30 * 0.85 < value < 30 * 1.15 for (value,) in l0)
        most, median = con.execute("select max(n_tokens), median(n_tokens) from features").fetchall()[0]
        assert most > 10 * max(median, 1)
        activation = con.execute("select activation from activations").fetchnumpy()["activation"]
    assert (activation > 0).all()
    assert not (activation.view(np.uint32) & 0xFFFF).any(), "rounded to bfloat16, which is the upper half of a float32"
    other = Lake.create(tmp_path.parent / "other")
    assert synthesize(other, shape).content_hash == record.content_hash
    assert Shape.of_rows(10_000_000).n_prompts == pytest.approx(288, abs=1)


@settings(max_examples=60)
@given(data=st.data(), n_bos=st.lists(st.integers(0, 2), min_size=4, max_size=4), batch=st.integers(1, 9))
def test_statistics_do_not_depend_on_where_batches_end(data: st.DataObject, n_bos: list[int], batch: int) -> None:
    """Also where a batch ends between the tokens of one prompt, or within its BOS tokens."""
    places = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3))
    rows = sorted(data.draw(st.lists(places, min_size=1, max_size=40, unique=True)))
    columns = {
        "sae_id": pa.array(["one"] * len(rows)),
        "feature_id": pa.array([feature for feature, _, _ in rows], pa.int32()),
        "prompt_id": pa.array([TAG + prompt for _, prompt, _ in rows], pa.int64()),
        "pos": pa.array([pos for _, _, pos in rows], pa.int16()),
        "activation": pa.array([1 + feature + prompt / 4 + pos / 16 for feature, prompt, pos in rows], pa.float32()),
    }
    counted = FeatureStatistics(lambda name: _landed(name, n_bos))
    for start in range(0, len(rows), batch):
        counted.observe(0, pa.RecordBatch.from_pydict(columns).slice(start, batch))
    found = counted.complete("features", _landed("features", n_bos)).to_pylist()
    for feature, row in enumerate(found):
        fires = [(p, pos) for f, p, pos in rows if f == feature and pos >= n_bos[p]]
        prompts = {prompt for prompt, _ in fires}
        values = [1 + feature + prompt / 4 + pos / 16 for prompt, pos in fires]
        assert row["n_tokens"] == len(fires)
        assert row["n_bos"] == sum(f == feature for f, _, _ in rows) - len(fires)
        assert row["n_prompts"] == len(prompts)
        assert (row["n_target"], row["n_control"]) == (len(prompts & {0, 1}), len(prompts & {2}))
        assert row["max_activation"] == max(values, default=None)
        assert row["mean_activation"] == (pytest.approx(sum(values) / len(values)) if values else None)


def _landed(name: str, n_bos: list[int]) -> pa.Table:
    """Four prompts of so many BOS tokens, two of them target and one control, and an SAE of three features."""
    prompt_id = [TAG + prompt for prompt in range(4)]
    tables: dict[str, dict[str, Any]] = {
        "prompts": {"prompt_id": prompt_id, "label_role": ["target", "target", "control", "other"]},
        "tokens": {
            "prompt_id": [i for i in prompt_id for _ in range(4)],
            "role": ["bos" if pos < n else "user" for n in n_bos for pos in range(4)],
        },
        "saes": {"sae_id": ["one"], "width": [3]},
        "features": {"run_id": ["run"] * 3, "sae_id": ["one"] * 3, "layer": [0] * 3, "feature_id": [0, 1, 2]},
    }
    weights = {"decoder_norm": [1.0] * 3, "threshold": [0.0] * 3} if name == "features" else {}
    return pa.table(tables[name] | weights)
