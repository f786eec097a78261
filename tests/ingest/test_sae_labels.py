"""Which public labels belong to an exact SAE: the facts that SAELens' directory holds, checked by hand against the hub."""

import pytest

from saelake.ingest.saes.labels import Directory, read_directory
from saelake.warehouse.errors import UserError
from tests.paper import GEMMA_L0


@pytest.fixture(scope="module")
def directory() -> Directory:
    return read_directory()


def gemma(layer: int) -> str:
    return f"gemma-scope-2b-pt-res/layer_{layer}/width_65k/average_l0_{GEMMA_L0[layer]}@0123456789"


def test_the_papers_gemma_saes_have_labels_at_six_layers_only(directory: Directory) -> None:
    found = {layer: directory.source(gemma(layer)) for layer in range(16)}
    labelled = {layer: f"gemma-2-2b/{layer}-gemmascope-res-65k" for layer in (2, 11, 12, 13, 14)}
    labelled[5] = "gemma-2-2b/5-gemmascope-res-65k__l0-53"
    assert {layer: source for layer, source in found.items() if source} == labelled


def test_llama_scope_has_labels_at_every_layer(directory: Directory) -> None:
    for layer in range(32):
        assert directory.source(f"llama_scope_lxr_32x/l{layer}r_32x@0123") == f"llama3.1-8b/{layer}-llamascope-res-131k"
    published = "llama_scope_lxr_32x/l7r_32x@0123 (threshold as published)"
    assert directory.source(published) == "llama3.1-8b/7-llamascope-res-131k"


def test_a_source_of_another_sae_is_refused(directory: Directory) -> None:
    directory.check("gemma-2-2b/11-gemmascope-res-65k", gemma(11))
    with pytest.raises(
        UserError, match=r"5-gemmascope-res-65k for .*average_l0_53.*describes .*average_l0_105: labels of another"
    ):
        directory.check("gemma-2-2b/5-gemmascope-res-65k", gemma(5))
    with pytest.raises(UserError, match="labels of another SAE"):
        directory.check("gemma-2-2b/11-gemmascope-res-65k", "layer_11@sha256:0123")


def test_folders_of_ones_own_have_no_source(directory: Directory) -> None:
    assert directory.source("layer_3@sha256:0123") is None
    assert directory.place("layer_3@sha256:0123") is None
    directory.check("my-model/3-mine", "layer_3@sha256:0123")
