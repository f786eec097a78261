"""Lists of features in a query: where they come from, and the predicates that read only their rows.

Only literals prune Parquet row groups: a join of 200 features per layer reads nearly everything, a literal list of ids per
layer reads little, and a disjunction over layers takes minutes. So `$features(activations)` becomes one branch per layer.
"""

import operator
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import duckdb

from saelake.queries.parameters import Parameter, QueryError
from saelake.queries.statements import check_reads, check_reads_tables
from saelake.warehouse.literals import literal

LISTED = re.compile(r"\s*([^\s,:]+:\d{1,9}\s*(,\s*|$))+")
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*){0,2}")
INTEGER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?")
"""DuckDB's types of whole numbers; a literal null is an INTEGER."""
LARGEST_IN_LIST = 2_000
"""Ids per layer beyond which looking them up in a hash table beats comparing a literal list (measured: 2,000 to 5,000)."""

Features = dict[tuple[int, str], list[int]]
"""(layer, sae_id) -> feature ids, sorted"""


def resolve(con: duckdb.DuckDBPyConnection, declared: Parameter, value: Any) -> Features:
    """The features that `value` names, completed from the table `saes`; raises QueryError for what no SAE has.

    Args:
        value: `layer:feature_id,...` (`sae_id:feature_id` where a layer has several SAEs), pairs of these, or the name of a
            table, or a select, whose columns are feature_id and at least one of layer and sae_id.
    """
    source, keys = _source(con, declared, value)
    text = {"layer": "", "sae_id": "::varchar"}
    joined = " and ".join(f"given.{key}{text[key]} = saes.{key}" for key in keys)
    several = dict(
        con.execute("select layer, list(sae_id order by sae_id) from saes group by layer having count(*) > 1").fetchall()
    )
    found = con.execute(
        f"select distinct saes.layer, saes.sae_id, saes.width, given.feature_id, {', '.join(f'given.{k}' for k in keys)} "
        f"from ({source}) as given left join saes on {joined} order by all"
    ).fetchall()
    features: Features = defaultdict(list)
    for layer, sae_id, width, feature_id, *given in found:
        where = " and ".join(f"{key} {str(shown)[:80]}" for key, shown in zip(keys, given, strict=True))
        if lacking := [key for key, one in zip(["feature_id", *keys], [feature_id, *given], strict=True) if one is None]:
            raise QueryError(f"{declared.name}: a row has no {lacking[0]}")
        if layer is None:
            known = _there(con, "sae_id" if "sae_id" in keys else "layer")
            raise QueryError(f"{declared.name}: the study has no SAE with {where}{known}")
        if keys == ["layer"] and layer in several:
            raise QueryError(
                f"{declared.name}: layer {layer} has several SAEs: give the sae_id, as {several[layer][0]}:{feature_id} "
                f"(of {', '.join(several[layer])})"
            )
        if not 0 <= feature_id < width:
            raise QueryError(f"{declared.name}: there is no feature {feature_id} in {where}: its features are 0 to {width - 1}")
        features[layer, sae_id].append(int(feature_id))
    return dict(features)


def as_select(value: str) -> str:
    """A select, or that of the table whose name it is."""
    value = value.strip().rstrip(";")
    return "from " + ".".join(f'"{part}"' for part in value.split(".")) if NAME.fullmatch(value) else value


def _source(con: duckdb.DuckDBPyConnection, declared: Parameter, value: Any) -> tuple[str, list[str]]:
    """A select that gives the features, and the columns that say which SAE they belong to."""
    if isinstance(value, str) and LISTED.fullmatch(value):
        value = [tuple(part.strip().split(":")) for part in value.split(",") if part.strip()]
    if not isinstance(value, str):
        pairs = _pairs(declared, value)
        if any(isinstance(of, str) for of, _ in pairs):
            return _of_saes(con, declared, pairs), ["sae_id"]
        rows = ", ".join(f"({layer}, {feature_id})" for layer, feature_id in pairs)
        empty = "select null::integer as layer, null::integer as feature_id where false"
        return f"from (values {rows}) as listed(layer, feature_id)" if rows else empty, ["layer"]
    given = value = value.strip().rstrip(";")
    if value.isdecimal():
        raise QueryError(f"{declared.name}: {value} is in no layer: write LAYER:{value}")
    value = as_select(value)
    try:
        check_reads(value)
        check_reads_tables(con, value)
        rows_of_it = con.sql(f"from ({value}\n) limit 0")
        kinds = dict(zip(rows_of_it.columns, map(str, rows_of_it.types), strict=True))
    except (QueryError, duckdb.Error) as error:
        raise QueryError(f"{declared.mistyped(given)} ({str(error).splitlines()[0]})") from None
    keys = [name for name in kinds if name in ("layer", "sae_id")]
    if "feature_id" not in kinds or not keys:
        raise QueryError(f"{declared.name} needs the columns feature_id and layer or sae_id, not {', '.join(kinds)}")
    for name in ("layer", "feature_id"):
        if name in kinds and not INTEGER.fullmatch(kinds[name]):
            raise QueryError(
                f"{declared.name}: {name} is {kinds[name]}, and not an integer: write {name}::integer, if all are whole"
            )
    return f"from ({value}\n)", keys


def _pairs(declared: Parameter, value: Any) -> list[tuple[int | str, int]]:
    """(layer or sae_id, feature_id)"""
    try:
        listed = list(value)
        pairs = [(of, feature_id) for of, feature_id in listed]
        one_by_one = isinstance(value, Mapping) or any(isinstance(pair, str | bytes) for pair in listed)  # "17" is no pair
        if one_by_one or any(isinstance(one, bool) for pair in pairs for one in pair):
            raise declared.mistyped(value)
        return [(of if isinstance(of, str) and not of.isdecimal() else _integer(of), _integer(number)) for of, number in pairs]
    except (TypeError, ValueError):
        raise declared.mistyped(value) from None


def _integer(number: Any) -> int:
    """Raises TypeError or ValueError for what is no whole number, or the text of none."""
    return int(number) if isinstance(number, str) else operator.index(number)


def _of_saes(con: duckdb.DuckDBPyConnection, declared: Parameter, pairs: Iterable[tuple[int | str, int]]) -> str:
    """A select of listed features, some of which go by the name of their SAE: all of them do, after it."""
    by_layer = [pair for pair in pairs if not isinstance(pair[0], str)]
    named = [(sae_id, n) for (_, sae_id), ids in resolve(con, declared, by_layer).items() for n in ids] if by_layer else []
    named += [(of, n) for of, n in pairs if isinstance(of, str)]
    rows = ", ".join(f"({literal(sae_id)}, {feature_id})" for sae_id, feature_id in named)
    return f"from (values {rows}) as listed(sae_id, feature_id)"


def _there(con: duckdb.DuckDBPyConnection, key: str) -> str:
    """The layers or SAEs that there are."""
    names = [str(row[0]) for row in con.execute(f"select distinct {key} from saes order by all").fetchall()]
    what = "layers" if key == "layer" else "SAEs"
    return f": its {what} are {', '.join(names)}" if names else ": it has none at all"


def subquery(con: duckdb.DuckDBPyConnection, table: str, features: Features, *, by_layer: bool = True) -> str:
    """SQL for the rows of `table` that belong to the features: a subquery by literal predicates, with one branch per layer.

    A table macro `<table>_of(layer)`, where the catalog has one, opens only that layer's files, if `by_layer` allows it. Where
    these hold a single SAE, layer and sae_id are written in as constants: reading them row by row would take longer than reading
    the ids.
    """
    by_layer = by_layer and _has_layers(con, table)
    n_saes = dict(con.execute("select layer, count(distinct sae_id) from saes group by layer").fetchall())
    branches = [f"select * from {table} where false"] if not features else []
    for (layer, sae_id), feature_ids in features.items():
        sae, predicate = literal(sae_id), _predicate(feature_ids)
        if by_layer and n_saes[layer] == 1:
            constants = f"* replace ({layer}::smallint as layer, {sae} as sae_id)"
            branches.append(f"select {constants} from {table}_of({layer}) where {predicate}")
        else:
            source = f"{table}_of({layer})" if by_layer else table
            branches.append(f"select * from {source} where layer = {layer} and sae_id = {sae} and {predicate}")
    return "(" + "\n    union all ".join(branches) + ")"


def _has_layers(con: duckdb.DuckDBPyConnection, table: str) -> bool:
    try:
        con.execute(f"from {table}_of(0) limit 0")  # listing all functions to look for it takes 20 ms
    except duckdb.CatalogException:
        return False
    except duckdb.Error:  # of a damaged file, which may be another layer's
        return True
    return True


def _predicate(feature_ids: Iterable[int]) -> str:
    ids = sorted(set(feature_ids))
    between = f"feature_id between {ids[0]} and {ids[-1]}"
    listed = ", ".join(map(str, ids))
    if len(ids) == ids[-1] - ids[0] + 1:
        return between
    if len(ids) <= LARGEST_IN_LIST:
        return f"feature_id in ({listed})"
    return f"{between} and feature_id in (select unnest([{listed}]))"
