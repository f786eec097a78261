"""What the benchmarks' page says of their figures, and what a study is said to cost."""

from pathlib import Path

import pytest
import torch

from benchmarks import cost, summary
from benchmarks.harness import DOCS, Report
from benchmarks.subjects import L0, random_sae
from saelake.warehouse.synth import Shape


def test_every_figure_is_listed_with_its_target_and_whether_it_is_reached(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    for name, figures in {
        "one": [(1.04, "<= 1.10"), (1.2, "<= 1.10"), (3, "none")],
        "two": [(9.7, ">= 10"), (10, ">= 10")],
    }.items():
        report = Report(name, f"Section {name}")
        for number, (value, target) in enumerate(figures):
            report.ratio(f"{name}_{number}", value, target)
        report.keep(page)
    found = list(summary.lines(page.read_text(encoding="utf-8")))
    assert [(line.command, line.name, line.reached) for line in found] == [
        ("make bench-one", "one_0", "yes"),
        ("make bench-one", "one_1", "no"),
        ("make bench-one", "one_2", "-"),
        ("make bench-two", "two_0", "no"),
        ("make bench-two", "two_1", "yes"),
    ]


def test_no_figure_of_the_page_is_missed() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert len(list(summary.lines(text))) == sum(line.startswith("ratio ") for line in text.splitlines()) > 90


def test_random_directions_across_the_sink_are_silent_there_and_fire_elsewhere() -> None:
    resid_nd = torch.randn(100, 32, generator=torch.Generator().manual_seed(1))
    resid_nd[0] *= 100

    def firing(across_sink: bool) -> torch.Tensor:
        sae = random_sae(resid_nd, 3, 256, torch.Generator().manual_seed(0), across_sink)
        return (sae.encode(resid_nd) > 0).sum(1)

    assert firing(False)[0] > 100
    assert firing(True)[0] == 0
    assert firing(True)[1:].float().mean() == pytest.approx(L0, rel=0.3)


def test_bytes_and_rows_of_a_study_are_those_of_the_formula(tmp_path: Path) -> None:
    """Time and memory are the benchmark's to compare: they are not the same on every machine."""
    shape = Shape(n_prompts=60, n_layers=2, width=8_192)
    cost.land_all(tmp_path / "lake", shape)
    took, told = cost.publish(tmp_path / "lake", shape), cost.Cost.of(shape)
    assert took.rows == pytest.approx(told.rows, rel=0.2)
    assert took.bytes == pytest.approx(told.bytes, rel=0.3)
