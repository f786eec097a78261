"""Fixtures of the analysis tests."""

import pytest

from tests.analysis.effects import Analysed, analyse


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """The planted study, analysed once for all tests of interactions and side effects; do not change it."""
    return analyse(tmp_path_factory.mktemp("effects"))
