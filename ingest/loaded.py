"""The subject of a study and its SAEs, loaded once for all that works with them in one process: ingest, then the analysis."""

from functools import cached_property

from saelake.ingest.preflight import check_device_memory, check_saes
from saelake.ingest.saes.description import SaeDescription
from saelake.ingest.saes.loader import SaeLoader
from saelake.ingest.saes.sae import check_fits
from saelake.ingest.study import Study
from saelake.ingest.subject import Subject


class Loaded:
    """Each part is loaded when it is first asked for.

    Raises UserError for too little memory, and for an SAE that does not fit the model.
    """

    def __init__(self, study: Study) -> None:
        self.study = study

    @cached_property
    def descriptions(self) -> dict[int, SaeDescription]:
        """What every SAE says about itself, by its number; checked against the model's own configuration."""
        by_id = {one.ref.sae_id: one for one in check_saes(self.study)}
        return {number: by_id[ref.sae_id] for number, ref in self.study.numbered_saes.items()}

    @cached_property
    def subject(self) -> Subject:
        return Subject.load(self.study.recipe.model, self.study.recipe.compute)

    @cached_property
    def sae_loader(self) -> SaeLoader:
        """The SAEs, checked again: the loaded model is the judge."""
        if "subject" not in self.__dict__:
            check_device_memory(self.study, list(self.descriptions.values()))
        for one in self.descriptions.values():
            check_fits(one, self.subject)
        return SaeLoader(self.descriptions, self.subject.device)

    def forget(self) -> None:
        """Gives up what is loaded; it is loaded again when it is asked for again."""
        for name in ("subject", "sae_loader"):
            self.__dict__.pop(name, None)
