"""The card of a shared set: README.md with the configuration that the hub and `datasets` read, and what a person should know."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelake.warehouse.records import RunRecord
from saelake.warehouse.schema import TABLES, Column, Table
from saelake.warehouse.sharing.withheld import Withheld

TEMPLATE = Path(__file__).with_name("card.md.jinja")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
LARGER = ((100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"), (10_000_000_000, "1B<n<10B"))


@dataclass(frozen=True)
class Part:
    """One table of the set."""

    table: Table
    columns: tuple[Column, ...]
    """Those that its files hold."""
    n_rows: int
    n_bytes: int
    left_out: tuple[str, ...]
    """Columns that are left out on some rows."""


def write_card(path: Path, records: Sequence[RunRecord], withheld: Withheld) -> None:
    """Writes the card of a set with these records."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["md"] = markdown_text
    every = list(parts_of(records))
    parts = [part for part in every if part.n_rows] or every  # `datasets` cannot load a configuration without rows
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        front_matter=_front_matter(records, parts),
        name=", ".join(sorted({r.recipe for r in records})),
        parts=parts,
        records=records,
        studies=list(_studies(records)),
        absent=sorted({name for r in records for name in r.withheld if "." not in name}),
        restricted=withheld.restricted,
        with_completions=withheld.with_completions,
        is_atlas=any(p.table.name == "method_scores" for p in parts),
        first="activations" if any(p.table.name == "activations" for p in parts) else parts[0].table.name,
    )
    path.write_text(text, encoding="utf-8")


def markdown_text(value: object) -> str:
    """Text from recipes and records that a Markdown or HTML reader shows as it is; one line."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return "".join(f"&#{ord(c)};" if c in "&<>\"'`*_{}[]()#+!|\\~$" else c for c in text)


def parts_of(records: Sequence[RunRecord]) -> Iterator[Part]:
    """The tables of a set with these records."""
    for table in TABLES.values():
        files = [f for r in records for f in r.files if f.table == table.name]
        if files:
            versions = {r.schema_version for r in records if any(f.table == table.name for f in r.files)}
            columns = tuple(c for c in table.columns if any(map(c.is_in, versions)))
            left_out = {n.partition(".")[2] for r in records for n in r.withheld if n.startswith(f"{table.name}.")}
            yield Part(table, columns, sum(f.n_rows for f in files), sum(f.n_bytes for f in files), tuple(sorted(left_out)))


def licence_of(records: Sequence[RunRecord]) -> str:
    """The one licence of all that a set was made from; other, where there are several, or none is told."""
    licences = {licence for study in _studies(records) for licence in study["licences"]}
    return licences.pop() if len(licences) == 1 else "other"


def _front_matter(records: Sequence[RunRecord], parts: Sequence[Part]) -> str:
    """YAML: what the hub's index and `datasets` read."""
    import yaml  # type: ignore[import-untyped]

    largest = max(part.n_rows for part in parts)
    size = next((name for limit, name in (*SIZES, *LARGER) if largest < limit), "n>1T" if largest >= 10**12 else "10B<n<100B")
    configs = [{"config_name": p.table.name, "data_files": f"data/{p.table.name}/*.parquet"} for p in parts]
    default = next((c for c in configs if c["config_name"] == "activations"), configs[0])
    content = {
        "pretty_name": "saelake: " + ", ".join(sorted({r.recipe for r in records})),
        "license": licence_of(records),
        "tags": ["interpretability", "sparse-autoencoder", "saelake"],
        "size_categories": [size],
        "configs": [c | {"default": True} if c is default else c for c in configs],
    }
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text.strip()


def _studies(records: Sequence[RunRecord]) -> Iterator[dict[str, Any]]:
    """What the runs of each study say of its model, SAEs and prompts; a set without prompts says nothing."""
    for name in dict.fromkeys(record.recipe for record in records):
        mine = [record for record in records if record.recipe == name]
        telling = [record for record in mine if "model_hash" in record.config and "prompts" in record.about]
        if not telling:
            continue
        about, config = telling[0].about, telling[0].config
        sets = [one for record in telling for one in _prompt_sets(record)]
        licences = [about.get(part, {}).get("licence") for part in ("model", "saes")] + [s["licence"] for s in sets]
        yield {
            "recipe": name,
            "model": about.get("model", {}).get("id") or "a folder of the study's own",
            "model_hash": config.get("model_hash", "not recorded"),
            "model_licence": licences[0] or "not stated",
            "saes": list(dict.fromkeys(sae for record in mine for sae in _saes(record))),
            "saes_licence": licences[1] or "not stated",
            "sets": sets,
            "licences": {licence or "other" for licence in licences},
            "versions": ", ".join(f"{name} {version}" for name, version in sorted(telling[0].versions.items())),
        }


def _saes(record: RunRecord) -> list[str]:
    """The SAEs of a run with activations; a run of version 1 held those of a whole study. An import names those of others."""
    if not any(table.name == "saes" for table in record.tables):
        return []
    one, several = record.config.get("sae"), record.config.get("saes")
    names = [one.get("name")] if isinstance(one, dict) else several.get("names") if isinstance(several, dict) else []
    return [name for name in names or () if isinstance(name, str)]


def _prompt_sets(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The prompt sets of a run; one of version 1 held all of a study."""
    older = {one["set"]: _pins(one) for one in record.config.get("prompts", {}).get("sets", ())}
    for one in record.about.get("prompts", ()):
        yield {
            "set": one["set"],
            "sources": one.get("sources") or ["a file of the study's own"],
            "pins": one.get("pins") or older.get(one["set"], []),
            "licence": one.get("licence"),
            "restricted": bool(one.get("restricted")),
        }


def _pins(config: Mapping[str, Any]) -> list[str]:
    pins = [config.get("revision"), config.get("sha256"), *(source.get("sha256") for source in config.get("sources", ()))]
    return [pin for pin in pins if pin]
