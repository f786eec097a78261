"""A study: what a recipe names, found and fingerprinted, before anything is loaded on a device."""

from collections import Counter
from dataclasses import dataclass

from saelake.ingest.access import require_access
from saelake.ingest.fingerprint import fingerprint
from saelake.ingest.prompts import Prompt, load_prompts
from saelake.ingest.recipe import Recipe
from saelake.ingest.recipe.sections import Role
from saelake.ingest.saes.refs import SaeRef, list_saes, numbered


@dataclass(frozen=True)
class Study:
    """A recipe with its prompts, its SAEs by their files' hashes, and the hash of its model."""

    recipe: Recipe
    prompts: list[Prompt]
    saes: list[SaeRef]
    model_hash: str
    device: str
    """cpu, cuda or mps"""

    def prompts_of(self, split: str, role: Role | None = None) -> list[int]:
        """Places in `prompts` of the prompts of a split; only of those whose label has a role, if one is given."""
        return [i for i, p in enumerate(self.prompts) if p.split == split and role in (None, self.recipe.labels.role(p.label))]

    def role(self, prompt: int) -> Role:
        """The role of a prompt's label, by the prompt's place in `prompts`."""
        return self.recipe.labels.role(self.prompts[prompt].label)

    @property
    def numbered_saes(self) -> dict[int, SaeRef]:
        """The SAEs by the numbers that arrays hold."""
        return numbered(self.saes)

    @property
    def sae_shards(self) -> dict[str, int]:
        """Name of each SAE's shard -> its number; the name has the layer and, where that has several SAEs, the hash."""
        found = self.numbered_saes
        several = Counter(ref.layer for ref in self.saes)
        return {
            f"layer-{ref.layer:02d}" + (f"-{ref.content_hash[:8]}" if several[ref.layer] > 1 else ""): number
            for number, ref in found.items()
        }

    @property
    def identity(self) -> dict[str, object]:
        """What every stage of the study depends on."""
        labels = self.recipe.section("labels")
        compiled = {"compiled": True} if self.recipe.compute.compile else {}
        known = compiled | {"device": self.device, "dtype": self.recipe.model.dtype, "model_hash": self.model_hash}
        return known | ({"labels": labels} if labels else {})


def open_study(recipe: Recipe) -> Study:
    """Reads the prompt sets and fingerprints model and SAEs; raises UserError for whatever is missing or wrong."""
    from saelake.ingest.compiled import check_compiles
    from saelake.ingest.loading import load_tokenizer, resolve_device
    from saelake.ingest.template import ChatTemplate

    device = resolve_device(recipe.compute.device).type
    check_compiles(recipe.compute, device)
    require_access(recipe.model)
    saes, model_hash = list_saes(recipe), fingerprint(recipe.model)
    template = ChatTemplate.of(load_tokenizer(recipe.model), recipe.model)
    prompts = load_prompts(recipe, template.identities)
    return Study(recipe, prompts, saes, model_hash, device)
