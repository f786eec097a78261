"""What an installation may leave out: the extras of pyproject.toml, and the one sentence that names the one that is needed.

A module of an extra is imported where it is used; what is missing then is named by `missing`, or beforehand by `require`.
"""

from importlib.util import find_spec

from saelake.warehouse.errors import UserError

EXTRAS = {
    "compute": ("torch", "transformers", "sae_lens", "torchfm", "datasets", "safetensors"),
    "gguf": ("gguf",),
    "backends": ("transformer_lens", "nnsight"),
    "ray": ("ray",),
    "annotate": ("fastapi", "uvicorn"),
    "s3": ("obstore", "botocore", "duckdb_extension_httpfs"),
    "spark": ("pyspark", "sqlglot"),
    "notebook": ("marimo", "polars"),
}
"""Extra -> the modules that its packages bring."""


def require(extra: str, what: str, *modules: str) -> None:
    """Raises UserError, which names the extra, if `what` needs a module of it (all, or those named) that is not installed."""
    for module in modules or EXTRAS[extra]:
        if not _is_installed(module):
            raise UserError(_sentence(what, module, extra))


def has(extra: str) -> bool:
    """Whether all modules of an extra are installed."""
    return all(map(_is_installed, EXTRAS[extra]))


def missing(error: ImportError, what: str = "this command") -> str | None:
    """The sentence for an import by `what` that failed because an extra is not installed; None if no extra brings the module."""
    module = (error.name or "").partition(".")[0]
    extra = next((name for name, modules in EXTRAS.items() if module in modules), None)
    if extra is None or _is_installed(module):
        return None
    return _sentence(what, module, extra)


def _sentence(what: str, module: str, extra: str) -> str:
    return f"{what} needs the extra {extra}: pip install 'saelake[{extra}]' ({module} is not installed)"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
