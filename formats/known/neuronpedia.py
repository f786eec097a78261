"""Neuronpedia's bulk files, batch-N.jsonl.gz: explanations, activations and features, of one or of several sources.

What a row is shows in its names: `description` is an explanation, `tokens` and `values` a text on which the feature fires, and
anything else that names a feature describes it: how often it fires, and which logits it moves. Explanations are read as
`saelake explain` reads them from the bucket itself.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saelake.analysis.meaning.explanations import KnownSae, explanation_rows
from saelake.analysis.meaning.neuronpedia import Explanation, explanation_of, feature_of
from saelake.formats.examples import Example, example_rows, number, text_of
from saelake.formats.feature_facts import NOTHING, densities, moved_logits
from saelake.formats.joined import Joined, as_name, check_feature, saes_of
from saelake.formats.models import model_of
from saelake.formats.registry import Asked, Format, Found
from saelake.formats.sources import Sources, sources_of
from saelake.formats.top_texts import Tops
from saelake.ingest.rows import read_rows
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import FEATURE_REPORTS, REPORTED_LOGITS

if TYPE_CHECKING:
    from saelake.lake import OpenLake

OWNER = "import neuronpedia"
SIDES = {"promoted": "pos", "suppressed": "neg"}
KINDS = ("explanations", "activations", "features")


class _Read:
    """What the rows of all files hold."""

    def __init__(self, joined: Joined, asked: Asked) -> None:
        self._sources = Sources(joined, asked)
        self.explanations: dict[KnownSae, list[Explanation]] = {}
        self.examples: list[Example] = []
        self.reports: dict[tuple[KnownSae, int], dict[str, float | None]] = {}
        self.logits: list[tuple[KnownSae, int, str, int, str, float]] = []

    @property
    def sources(self) -> list[str]:
        return ["/".join(source) for source in self._sources.saes]

    @property
    def saes(self) -> list[KnownSae]:
        return list(dict.fromkeys(self._sources.saes.values()))

    def take(self, row: Any, where: str) -> None:
        """One row of whichever kind."""
        feature_id = feature_of(row, where)
        sae = self._sources.sae(str(row.get("modelId")), str(row.get("layer") or row.get("source")), where)
        check_feature(sae, feature_id, where)
        if "description" in row:
            if (one := explanation_of(row, feature_id)) is not None:
                self.explanations.setdefault(sae, []).append(one)
        elif "tokens" in row and "values" in row:
            self.examples.append(_example(row, sae, feature_id, where))
        else:
            self._report(row, sae, feature_id, where)

    def _report(self, row: dict[str, Any], sae: KnownSae, feature_id: int, where: str) -> None:
        if (sae, feature_id) in self.reports:
            raise UserError(f"{where}: the feature {feature_id} of {sae.sae_id} comes twice")
        density, largest = row.get("frac_nonzero"), row.get("maxActApprox")
        self.reports[sae, feature_id] = {
            "density": None if density is None else number(density, where),
            "max_activation": None if largest is None else number(largest, where),
        }
        for side, short in SIDES.items():
            texts, values = row.get(f"{short}_str") or [], row.get(f"{short}_values") or []
            if not isinstance(texts, list) or not isinstance(values, list) or len(texts) != len(values):
                raise UserError(f"{where}: {short}_str and {short}_values do not fit together")
            for rank, (text, value) in enumerate(zip(texts, values, strict=True)):
                self.logits.append((sae, feature_id, side, rank, text_of(text, "token", where), number(value, where)))

    def rows(self) -> list[Rows]:
        named: dict[str, list[str]] = {}
        for pair, sae in self._sources.saes.items():
            named.setdefault(sae.sae_id, []).append("/".join(pair))
        source = {sae_id: f"Neuronpedia {', '.join(pairs)}" for sae_id, pairs in named.items()}
        found = [explanation_rows(sae, told, source[sae.sae_id]) for sae, told in self.explanations.items()]
        reports = list(self.reports.items())
        return [
            *found,
            example_rows(self.examples, source),
            Rows.of(
                FEATURE_REPORTS,
                {
                    "sae_id": [sae.sae_id for (sae, _), _ in reports],
                    "layer": [sae.layer for (sae, _), _ in reports],
                    "feature_id": [feature_id for (_, feature_id), _ in reports],
                    "density": [told["density"] for _, told in reports],
                    "max_activation": [told["max_activation"] for _, told in reports],
                    "source": [source[sae.sae_id] for (sae, _), _ in reports],
                },
            ),
            Rows.of(
                REPORTED_LOGITS,
                {
                    "sae_id": [one[0].sae_id for one in self.logits],
                    "layer": [one[0].layer for one in self.logits],
                    **{
                        name: [one[n] for one in self.logits]
                        for n, name in enumerate(("feature_id", "side", "rank", "token", "logit"), 1)
                    },
                },
            ),
        ]


def _example(row: dict[str, Any], sae: KnownSae, feature_id: int, where: str) -> Example:
    tokens, values = row["tokens"], row["values"]
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values) or not tokens:
        raise UserError(f"{where}: its tokens and values do not fit together")
    texts, numbers = [text_of(one, "token", where) for one in tokens], [number(one, where) for one in values]
    pos = max(range(len(numbers)), key=numbers.__getitem__)
    told, values = json.dumps(texts, ensure_ascii=False), np.array(numbers, dtype=np.float64)
    return Example(sae, feature_id, numbers[pos], "".join(texts), texts[pos], pos, told, values)


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    read = _Read(joined, asked)
    for file in files:
        for place, row in enumerate(read_rows(file, OWNER), start=1):
            read.take(row, f"{OWNER}: {file.name}, row {place}")
    return Found(lambda _: read.rows(), joined.run_of(read.saes), {"sources": read.sources})


def _write(opened: "OpenLake", folder: Path, asked: Asked) -> Mapping[str, int]:
    written, tops, saes = dict[str, int](), Tops(opened), saes_of(opened, asked.sae)
    sources = sources_of(saes, model_of(opened))
    for sae in saes:
        named = sources[sae.sae_id]
        place = "/".join(("v1", *map(as_name, named)))
        about = {"modelId": named[0], "layer": named[1], "source": named[1]}
        for kind, rows in zip(KINDS, (_explanations(opened, sae), _activations(tops, sae), _features(opened, sae)), strict=True):
            name = f"{place}/{kind}/batch-0.jsonl.gz"
            if n_rows := _write_lines(folder / name, (about | row for row in rows)):
                written[name] = n_rows
    return written


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if lines:
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    return len(lines)


def _explanations(opened: "OpenLake", sae: KnownSae) -> Iterator[dict[str, Any]]:
    found = opened.sql(
        "select feature_id, description, method, explainer from explanations where sae_id = $1 "
        "order by feature_id, run_id, number",
        [sae.sae_id],
    ).fetchall()
    for feature_id, description, method, explainer in found:
        yield {"index": str(feature_id), "description": description, "typeName": method, "explanationModelName": explainer}


def _activations(tops: Tops, sae: KnownSae) -> Iterator[dict[str, Any]]:
    for top in tops.of(sae):
        yield {
            "index": str(top.feature_id),
            "dataIndex": str(top.number),
            "tokens": top.tokens,
            "values": top.values,
            "maxValue": top.activation,
            "maxValueTokenIndex": top.pos,
            "minValue": min(top.values),
            "binMin": None,
            "binMax": None,
            "binContains": None,
        }


def _features(opened: "OpenLake", sae: KnownSae) -> Iterator[dict[str, Any]]:
    logits = moved_logits(opened, sae)
    for feature_id, density, largest, hook in densities(opened, sae):
        row = {"index": str(feature_id), "frac_nonzero": density, "maxActApprox": largest or 0.0, "hookName": hook}
        for side, short in SIDES.items():
            row[f"{short}_str"], row[f"{short}_values"] = logits.get((feature_id, side), NOTHING)[:2]
        yield row


FORMAT = Format(
    what="Neuronpedia's bulk files: explanations, activations and features as batch-N.jsonl.gz",
    read=_read,
    write=_write,
    files=("batch-*.jsonl.gz", "*/batch-*.jsonl.gz", "v1/*/*/*/batch-*.jsonl.gz"),
    reads=frozenset({"sae", "model"}),
    writes=frozenset({"sae"}),
)
