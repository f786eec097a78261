"""harmbench: the HarmBench classifier, which says whether an answer does the harm that was asked for.

Of a benign prompt it says no however well that is answered, so that it judges harmful ones alone.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

from saelake.analysis.judges.harmbench import Classifier, identify
from saelake.analysis.judges.protocol import Answer, Need, Verdict
from saelake.ingest.recipe import Recipe


class HarmBench:
    """The classifier of a recipe, which is loaded with the first answers."""

    needs: frozenset[Need] = frozenset({"text", "model"})
    labels = ("target",)

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    @property
    def identity(self) -> Mapping[str, object]:
        """Raises UserError for a classifier or a template that cannot be found."""
        return identify(self._recipe.verdicts.harmbench)

    @cached_property
    def classifier(self) -> Classifier:
        return Classifier.load(self._recipe.verdicts.harmbench, self._recipe.compute)

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        return self.classifier(answers)


JUDGE = HarmBench
