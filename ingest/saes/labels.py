"""Which Neuronpedia source describes an exact SAE, by SAELens' directory: labels of another SAE of the layer are worth nothing.

Neuronpedia calls a source by model and layer, e.g. gemma-2-2b/5-gemmascope-res-65k. Which of a layer's SAEs it was made with
stands in the directory alone: sources whose repository and folder are the SAE's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import yaml  # type: ignore[import-untyped]

from saelake.ingest.saes.refs import directory_file
from saelake.warehouse.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where the weights of a released SAE lie: what makes it this SAE and no other."""

    repository: str
    folder: str


@dataclass(frozen=True)
class Directory:
    """SAELens' directory, as far as labels need it."""

    places: Mapping[str, Place]
    """release/id -> place"""
    sources: Mapping[str, Place]
    """Neuronpedia's model/source -> place"""

    def place(self, sae_name: str) -> Place | None:
        """Where an SAE of the table `saes` comes from, by its name there; None for a folder of one's own."""
        return self.places.get(sae_name.split("@")[0])

    def source(self, sae_name: str) -> str | None:
        """The source that describes this exact SAE; None if there is none."""
        place = self.place(sae_name)
        fitting = [source for source, described in self.sources.items() if described == place]
        return min(fitting, key=lambda source: (len(source), source), default=None)

    def check(self, source: str, sae_name: str) -> None:
        """Raises UserError if a source that a recipe names describes another SAE than this one."""
        described, place = self.sources.get(source), self.place(sae_name)
        if described is not None and described != place:
            raise UserError(
                f"explanations.sources names {source} for {sae_name}, but it describes {described.repository}/{described.folder}"
                ": labels of another SAE say nothing about this one's features"
            )


@cache
def read_directory() -> Directory:
    """SAELens' directory, from the file that sae-lens installs."""
    releases = yaml.load(directory_file().read_text("utf-8"), Loader=yaml.CSafeLoader)
    places: dict[str, Place] = {}
    sources: dict[str, Place] = {}
    for release, content in releases.items():
        for sae in content.get("saes", ()):
            place = Place(str(content["repo_id"]), str(sae["path"]))
            places[f"{release}/{sae['id']}"] = place
            if source := sae.get("neuronpedia"):
                sources[str(source)] = place
    return Directory(places, sources)
