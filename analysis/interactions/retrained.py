"""Are the same features found with SAEs that were trained again from another seed (R21; the paper names this as its own limit)?

Features of two trainings have no common numbers. They are matched layer by layer where each is the other's nearest by the cosine
of the decoder rows and that cosine is high enough; sets of features are then compared as sets of pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from saelake import queries
from saelake.analysis.interactions.statistics import bootstrap_mean
from saelake.ingest.recipe import Recipe
from saelake.ingest.saes.refs import SaeRef, list_saes
from saelake.ingest.saes.sae import load_sae
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake

CHUNK_ROWS = 4096
SMALLEST = 1e-12
MIN_COSINE = 0.7
"""Below this, the nearest feature of another training is held to be another feature."""


@dataclass(frozen=True)
class Trainings:
    """How alike the minimal sets of two studies are."""

    n_features: int
    """of the first study's SAEs, on the layers that both have"""
    n_matched: int
    n_prompts: int
    """target prompts for which both found sets"""
    jaccard: float
    """mean over prompts, of the union of a prompt's sets over the starts"""
    low: float
    high: float
    """95% bootstrap interval over prompts"""
    jaccard_of_study: float
    """of the distinct features over all prompts"""


def match(mine_fd: Tensor, theirs_fd: Tensor, min_cosine: float = MIN_COSINE) -> tuple[np.ndarray, np.ndarray]:
    """Features of two SAEs that are each other's nearest by decoder cosine (ties to the lower id), and near enough.

    Returns: (n,) ids of mine, ascending, and (n,) ids of theirs.
    """
    cosine, nearest = _nearest(mine_fd, theirs_fd)
    _, nearest_back = _nearest(theirs_fd, mine_fd)
    ids = torch.arange(len(mine_fd), device=mine_fd.device)
    kept = ids[(nearest_back[nearest] == ids) & (cosine >= min_cosine)]
    return kept.cpu().numpy(), nearest[kept].cpu().numpy()


def _nearest(a_fd: Tensor, b_fd: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of a the largest cosine with a row of b, and which that is; no copy of a whole decoder is made."""
    length_b = b_fd.norm(dim=1).clamp_min(SMALLEST)
    parts = []
    for part_fd in a_fd.split(CHUNK_ROWS):
        unit_fd = part_fd / part_fd.norm(dim=1, keepdim=True).clamp_min(SMALLEST)
        parts.append((unit_fd @ b_fd.T).div_(length_b).max(dim=1))
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def compare_trainings(lake: Lake, recipe: Recipe, other: Recipe, min_cosine: float = MIN_COSINE) -> Trainings:
    """The minimal sets of two analysed studies of one model, whose SAEs differ in their training.

    Raises UserError where a study has no minimal sets, or the SAEs have no layer in common.
    """
    mine, theirs = _sets(lake, recipe), _sets(lake, other)
    ours, others = _by_layer(recipe), _by_layer(other)
    layers = sorted(ours.keys() & others.keys())
    if not layers:
        raise UserError(f"the SAEs of {recipe.name} and {other.name} have no layer in common")
    parts, n_features = [], 0
    for layer in layers:
        # Of each SAE the decoder stays alone, before the next comes.
        mine_fd, theirs_fd = (load_sae(refs[layer], torch.device("cpu")).W_dec for refs in (ours, others))
        if mine_fd.shape[1] != theirs_fd.shape[1]:
            raise UserError(f"{recipe.name} and {other.name} are about models of different widths")
        found = match(mine_fd, theirs_fd, min_cosine)
        n_features += len(mine_fd)
        named = {name: [refs[layer].sae_id] * len(found[0]) for name, refs in (("sae_id", ours), ("their_sae_id", others))}
        parts.append(pa.table(named | {"mine": found[0], "theirs": found[1]}))
    matches = pa.concat_tables(parts)
    with connect(lake) as con:
        for name, rows in (("mine", mine), ("theirs", theirs), ("matches", matches)):
            con.register(name, rows)
        (_, of_study), *prompts = con.execute(queries.step("trainings_overlap")).fetchall()
    if not prompts:
        raise UserError(f"{recipe.name} and {other.name} have no target prompt in common for which both found a minimal set")
    values = np.array([jaccard for _, jaccard in prompts])
    low, high = bootstrap_mean(values, recipe.compute.seed)
    return Trainings(n_features, len(matches), len(values), float(values.mean()), low, high, of_study)


def _sets(lake: Lake, recipe: Recipe) -> pa.Table:
    with connect(lake, recipe.name) as con:
        rows = con.sql(queries.step("minimal_members")).to_arrow_table()
    if not len(rows):
        raise UserError(f"the lake {lake} has no minimal sets of {recipe.name}: `saelake analyze {recipe.name}` first")
    return rows


def _by_layer(recipe: Recipe) -> Mapping[int, SaeRef]:
    refs = list_saes(recipe)
    layers = [ref.layer for ref in refs]
    if several := sorted({layer for layer in layers if layers.count(layer) > 1}):
        raise UserError(f"{recipe.name} has several SAEs on layer {several[0]}, and trainings are compared one SAE a layer")
    return {ref.layer: ref for ref in refs}
