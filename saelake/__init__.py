"""saelake: a language model's sparse-autoencoder activations as a data lake, and the search for what causes a behaviour.

    import saelake

    with saelake.open("lake") as lake:
        lake.sql("select label, count(*) from prompts group by label").show()
        lake.query("candidates", k=5, exclude_layers=[0, 1]).show()

What is listed in `__all__` is the public API; everything else may change. Names are imported when they are first used, so that
neither `import saelake` nor reading a lake loads a GPU stack.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saelake.analysis.backends import compare
    from saelake.analysis.engine.asked import Ablate, Add, Clamp, MeanAblate, ProjectOut
    from saelake.analysis.engine.attribution import attribution
    from saelake.analysis.engine.library import Engine
    from saelake.analysis.interactions.estimator import FactorizationMachine
    from saelake.analysis.search.one_prompt import minimal_set
    from saelake.ingest.sites import Site
    from saelake.ingest.subject import Subject
    from saelake.lake import OpenLake, open, sparse
    from saelake.warehouse.errors import UserError

_WHERE = {
    "Ablate": "saelake.analysis.engine.asked",
    "Add": "saelake.analysis.engine.asked",
    "Clamp": "saelake.analysis.engine.asked",
    "Engine": "saelake.analysis.engine.library",
    "FactorizationMachine": "saelake.analysis.interactions.estimator",
    "MeanAblate": "saelake.analysis.engine.asked",
    "OpenLake": "saelake.lake",
    "ProjectOut": "saelake.analysis.engine.asked",
    "Site": "saelake.ingest.sites",
    "Subject": "saelake.ingest.subject",
    "UserError": "saelake.warehouse.errors",
    "attribution": "saelake.analysis.engine.attribution",
    "compare": "saelake.analysis.backends",
    "minimal_set": "saelake.analysis.search.one_prompt",
    "open": "saelake.lake",
    "sparse": "saelake.lake",
}

_WITHOUT_COMPUTE = ("saelake.ingest.sites", "saelake.lake", "saelake.warehouse.errors")

__all__ = [
    "Ablate",
    "Add",
    "Clamp",
    "Engine",
    "FactorizationMachine",
    "MeanAblate",
    "OpenLake",
    "ProjectOut",
    "Site",
    "Subject",
    "UserError",
    "attribution",
    "compare",
    "minimal_set",
    "open",
    "sparse",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'saelake' has no attribute {name!r}")
    try:
        found = getattr(import_module(_WHERE[name]), name)
    except ImportError as error:
        from saelake.extras import missing
        from saelake.warehouse.errors import UserError

        if sentence := missing(error, f"saelake.{name}"):
            raise UserError(sentence) from error
        raise
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Without what needs the extra `compute`, where that is not installed: `help` and completion ask for every name listed."""
    from saelake.extras import has

    public = __all__ if has("compute") else [name for name in __all__ if _WHERE[name] in _WITHOUT_COMPUTE]
    return sorted({*globals(), *public})
