"""Which SAE of a study a Neuronpedia source is about, such as gemma-2-2b/5-gemmascope-res-65k.

SAELens' directory says so, or a person does.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec

from saelake.analysis.meaning.explanations import KnownSae
from saelake.formats.joined import Joined
from saelake.formats.models import check_model
from saelake.formats.registry import Asked
from saelake.ingest.saes.labels import Directory, read_directory
from saelake.warehouse.errors import UserError


def directory() -> Directory:
    """SAELens' directory; an empty one where sae-lens is not installed."""
    return read_directory() if find_spec("sae_lens") else Directory({}, {})


def is_model(name: str) -> bool:
    """Whether Neuronpedia has a model of this name, as far as the directory knows."""
    return any(source.startswith(f"{name}/") for source in directory().sources)


def sae_of(joined: Joined, model: str, layer: str, said: Asked, where: str) -> KnownSae:
    """The SAE that a source is about: where the directory does not know, the one that a person says.

    Raises UserError where it is not known, or known to be another, or of another model.
    """
    asked = said.sae
    named = [sae for sae in joined.saes if sae.sae_id == layer]
    if named and asked in (None, layer):
        return named[0]  # as saelake itself writes it
    source, known = f"{model}/{layer}", directory()
    described = known.sources.get(source)
    if asked is not None:
        sae = joined.named(asked, "--sae")
        place = known.place(sae.name)
        if described is not None and described != place:
            raise UserError(
                f"{where}: {source} is of {described.repository}/{described.folder}, not of {sae.name}: it is another SAE"
            )
        if described is None:
            check_model(model, joined, said, where)
        return sae
    if described is not None and (found := [sae for sae in joined.saes if known.place(sae.name) == described]):
        return found[0]
    saes = ", ".join(sae.sae_id for sae in joined.saes)
    raise UserError(f"{where}: {source} is not known to be an SAE of {joined.name} ({saes}): say which it is with --sae")


@dataclass
class Sources:
    """The SAEs that the sources of some rows are about, each looked up once; they are of one source where a person says which."""

    joined: Joined
    asked: Asked
    saes: dict[tuple[str, str], KnownSae] = field(default_factory=dict)
    """model and layer -> SAE, as they came"""

    def sae(self, model: str, layer: str, where: str) -> KnownSae:
        """The SAE of a row's source; raises UserError as `sae_of`, and for a second source where a person names one SAE."""
        if (model, layer) not in self.saes:
            self.saes[model, layer] = sae_of(self.joined, model, layer, self.asked, where)
            if self.asked.sae is not None and len(self.saes) > 1:
                raise UserError(f"{where}: it is of {model}/{layer}, and rows before of another source: --sae names one SAE")
        return self.saes[model, layer]


def sources_of(saes: Iterable[KnownSae], model: str) -> dict[str, tuple[str, str]]:
    """sae_id -> what `source_of` gives; raises UserError where two SAEs would go by one name."""
    found = {sae.sae_id: source_of(sae, model) for sae in saes}
    owner: dict[tuple[str, str], str] = {}
    for sae_id, source in found.items():
        if (other := owner.setdefault(source, sae_id)) != sae_id:
            raise UserError(f"Neuronpedia has one name, {'/'.join(source)}, for {other} and {sae_id}: write one of them alone")
    return found


def source_of(sae: KnownSae, model: str) -> tuple[str, str]:
    """Model and layer by which Neuronpedia calls an SAE; where it has none, the model's name and the sae_id."""
    named = directory().source(sae.name)
    if named is None:
        return model, sae.sae_id
    first, _, rest = named.partition("/")
    return first, rest
