"""Fixtures of the analysis tests."""

from pathlib import Path

import pytest

from saelake.analysis.report.page import write_report
from saelake.ingest.saes.refs import list_saes
from saelake.ingest.saes.sae import Sae, load_sae
from saelake.ingest.subject import Subject
from saelake.warehouse.durable import locked
from saelake.warehouse.lake import Lake
from tests.analysis.effects import Analysed, analyse
from tests.conftest import shared_folder


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """The planted study, analysed once for all tests of interactions and side effects, and test processes; do not change it."""
    return analyse(shared_folder(tmp_path_factory) / "effects")


@pytest.fixture(scope="session")
def subject(study: Analysed) -> Subject:
    """The planted study's model."""
    return Subject.load(study.recipe.model, study.recipe.compute)


@pytest.fixture(scope="session")
def saes(study: Analysed) -> dict[int, Sae]:
    """layer -> the planted study's SAE there."""
    return {ref.layer: load_sae(ref) for ref in list_saes(study.recipe)}


@pytest.fixture(scope="session")
def html(organism_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded study's report, written once for all tests and test processes."""
    file = shared_folder(tmp_path_factory) / "report" / "report.html"
    with locked(file.parent.with_suffix(".lock")):
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            write_report(Lake(organism_lake), None, file)
    return file.read_text(encoding="utf-8")
