"""Why tables of a study are empty: which link of the analysis did not hold, and what to change.

Derived from the study's own tables and records, so that it is said alike by the command line, the report and every question.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from saelake.queries.judges import oracle
from saelake.queries.loader import step

if TYPE_CHECKING:
    import duckdb

STAGES_OF = {
    "alignments": ("alignments",),
    "searches": ("minimal", "algorithm1"),
    "search_trace": ("algorithm1",),
    "critical_features": ("inert",),
    "waking_passes": ("waking",),
    "readouts": ("readouts",),
    "readout_sets": ("readouts",),
    "reactivations": ("waking",),
    "wakings": ("waking_graph",),
    "waking_edges": ("waking_graph",),
    "backup_tests": ("backups",),
    "backups": ("backups",),
    "clamps": ("steering",),
    "causal_links": ("stage3",),
    "models": ("fm", "probe"),
    "fm_embeddings": ("fm",),
    "fm_pairs": ("fm",),
    "probe_weights": ("probe",),
    "predictions": ("fm", "probe"),
    "decoder_cosines": ("decoder_cosines",),
    "layer_cosines": ("layer_diagnostic",),
    "losses": ("losses",),
    "populations": ("populations",),
    "taxonomy": ("taxonomy",),
    "separations": ("separation",),
    "feature_logits": ("logits",),
    "logit_moments": ("logits",),
    "concepts": ("concepts",),
    "comparisons": ("statistics",),
    "directions": ("direction",),
    "ablations": ("baseline", "candidates"),
    "verdicts": ("baseline", "candidates"),
    "feature_sets": ("minimal", "algorithm1"),
}
"""table -> the stages that fill it; what other stages add is no reason for its being empty"""
COMMANDS_OF = {
    "explanations": "no explanations are here: `saelake explain` brings them",
    "readings": "no backends are compared here: `saelake compare` reads the prompts through them",
    "doses": "no sweep of strengths is here: `saelake steer` makes one",
    **dict.fromkeys(
        ("answer_tokens", "answer_activations"),
        "no answers of the model are covered here: set capture.answer_tokens in the recipe, and run `saelake analyze`",
    ),
    **dict.fromkeys(
        ("single_effects", "joint_effects", "attributions", "method_scores"), "there is no atlas here: `saelake atlas` makes it"
    ),
    **dict.fromkeys(("recoveries", "recovery_rates"), "there is no audit here: `saelake audit` makes it"),
    "annotations": "no annotation study is closed: `saelake study create` begins one",
}
"""table that no stage fills -> what to say where it has no rows"""
FILTERS = {"late": "direction.drop_last_layers", "kl": "direction.kl_max", "induced": "direction.induce_min"}
"""what leaves a layer's direction out, as `directions.left_out` says it -> the recipe's field"""


class _Study(NamedTuple):
    con: "duckdb.DuckDBPyConnection"
    configs: dict[str, dict[str, Any]]
    """stage -> configuration of its current run"""
    words: dict[str, str]
    """What the behaviour is called."""

    def has(self, rows: str) -> bool:
        """Whether there are rows: of a table, or `<table> where ...`."""
        return bool(self.con.execute(f"select 1 from {rows} limit 1").fetchall())

    def setting(self, stage: str, section: str, field: str) -> Any:
        found = self.configs[stage].get(section)
        return found.get(field) if isinstance(found, dict) else None  # an added set's record may say anything


def reasons(con: "duckdb.DuckDBPyConnection") -> dict[str, str]:
    """Stage -> why it had no input, for the stages of the study shown that are computed and found nothing to work on."""
    found: dict[str, str] = {}
    study = _study(con)
    if study is None:
        return found
    for stage in study.configs:
        if stage in RULES and (why := _why(stage, study, found)):
            found[stage] = why
    return found


def _why(stage: str, study: _Study, found: dict[str, str]) -> str | None:
    """Why a stage had no input; None also where a shared set left out what would say so."""
    from saelake.warehouse.errors import LeftOut, view_errors

    rows, rule = RULES[stage]
    try:
        with view_errors():
            return None if study.has(rows) else rule(study, found)
    except LeftOut:
        return None


def why_empty(con: "duckdb.DuckDBPyConnection", sql: str, given: str = "") -> list[str]:
    """What explains that a statement has no rows: a sentence for every stage whose table it reads, or whose answers it names, and
    that had no input or is not computed.

    Args:
        given: the values of its parameters, as text; they may name answers too.
    """
    study = _study(con)
    if study is None or not study.configs:
        return []
    needed = _without_optional(sql)
    read = [name for name in STAGES_OF if re.search(rf"\b{name}\b", needed)]
    empty = reasons(con)
    said: list[str] = []
    named = [stage for stage in empty if re.search(rf"\b{stage}\b", f"{sql} {given}")]
    for stage in dict.fromkeys([*(stage for name in read for stage in STAGES_OF[name]), *named]):
        if stage in empty:
            said.append(f"{stage}: {empty[stage]}")
        elif stage not in study.configs and "direction" in empty:
            said.append(f"direction: {empty['direction']}")
        elif stage not in study.configs:
            said.append(f"{stage} is not computed: `saelake analyze` does that")
    by_command = [name for name in COMMANDS_OF if re.search(rf"\b{name}\b", needed)]
    said += [COMMANDS_OF[name] for name in by_command if not study.has(name)]
    return list(dict.fromkeys(said))


def _without_optional(sql: str) -> str:
    """The statement without the tables and named parts that it only joins from the left: their being empty costs it no row."""
    needed = set(re.findall(r"(?:\bfrom|(?<!left )\bjoin)\s+(\w+)", sql))
    for name in set(re.findall(r"\bleft join\s+(\w+)", sql)) - needed:
        sql = re.sub(rf"\b{name} as \(\n.*?^\)|\bleft join\s+{name}\b", "", sql, flags=re.DOTALL | re.MULTILINE)
    return sql


def _study(con: "duckdb.DuckDBPyConnection") -> _Study | None:
    import duckdb

    try:
        rows = con.execute("select stage, config::varchar, about::varchar from runs").fetchall()
    except duckdb.Error:  # a connection on plain files, which have no records
        return None
    ordered = sorted(rows, key=lambda row: list(RULES).index(row[0]) if row[0] in RULES else -1)
    about: dict[str, Any] = next((json.loads(text or "{}") for stage, _, text in rows if stage in ("prompts", "ingest")), {})
    behaviour = dict(about.get("behaviour") or {})
    words = {"target": behaviour.get("harmful", "harmful"), "shown": "refused"} | behaviour
    return _Study(con, {stage: json.loads(config or "{}") for stage, config, _ in ordered}, words)


def _direction(study: _Study, _: dict[str, str]) -> str | None:
    left_out = study.con.execute("select distinct unnest(string_split(left_out, ', ')) from directions").fetchall()
    fields = ", ".join(field for word, field in FILTERS.items() if (word,) in left_out)
    return (
        f"no layer's direction passes the filters of [direction]; the question directions shows each with what leaves it out"
        f"{f': change {fields}' if fields else ''}"
    )


def _search(stage: str, study: _Study, _: dict[str, str]) -> str | None:
    judge, words = {"judge": oracle(study.con)}, study.words
    n, n_refused = study.con.execute(step("refused_targets"), judge).fetchall()[0]
    if not n_refused:
        return (
            f"0 of {n} {words['target']} prompts are {words['shown']} by the unmodified model, so there is nothing to search: "
            f"use prompts that are, and check model.target_tokens and verdicts.oracle"
        )
    flips = {
        direction: (n_flipped, k) for direction, n_flipped, k in study.con.execute(step("flipped_by_top_k"), judge).fetchall()
    }
    direction = str(study.setting(stage, stage, "direction"))
    if direction == "first":
        ranked, largest_k = "by any ranking", max((k for _, k in flips.values()), default=0)
    else:
        ranked, (_, largest_k) = f"by the {direction} direction", flips.get(direction, (0, 0))
    others = [f'{stage}.direction = "{name}", by which {n_flipped} flip' for name, (n_flipped, _) in flips.items() if n_flipped]
    return (
        f"none of the {n_refused} {words['target']} prompts that are {words['shown']} flips while the top K features of each SAE "
        f"{ranked} are ablated, up to K = {largest_k}, so there is no pool to search: raise candidates.cap, "
        f"search more layers (saes.layers, candidates.exclude_layers){f', or set {others[0]}' if others else ''}"
    )


def _inert(_: _Study, found: dict[str, str]) -> str | None:
    upstream = [found[stage] for stage in ("minimal", "algorithm1") if stage in found]
    return upstream[0] if upstream else "the searches found no set that flips a prompt: see the question search_methods"


def _readouts(_: _Study, found: dict[str, str]) -> str | None:
    return found.get("inert")


def _waking(_: _Study, found: dict[str, str]) -> str | None:
    return found.get(
        "inert", "no critical feature fires on its own prompt, so ablating it changes nothing that could wake others"
    )


def _waking_graph(study: _Study, found: dict[str, str]) -> str | None:
    woken = "no feature that is silent on a prompt wakes while its critical ones are ablated"
    hint = (
        "" if study.setting("waking", "waking", "watched") == "all" else ': waking.watched = "all" looks at more than candidates'
    )
    return found.get("waking", woken + hint)


def _backups(study: _Study, found: dict[str, str]) -> str | None:
    none = "nothing that wakes is a backup: no prompt that a source alone does not flip flips with what wakes ablated too"
    tested = study.has("backup_tests where ablated = 'woken'")
    return found.get("waking_graph") or (none if tested else "nothing wakes, so there is nothing to ablate as well")


def _steering(study: _Study, found: dict[str, str]) -> str | None:
    if not any(study.setting("steering", "steering", field) for field in ("values", "levels")):
        return "steering.values and steering.levels name no value to hold features at"
    redundant = "no critical feature is silent on its prompt and wakes when the others are ablated"
    return found.get("inert", f'{redundant}: steering.features = "critical" takes the critical ones')


def _losses(study: _Study, found: dict[str, str]) -> str | None:
    return found.get("inert") if study.has("losses") else "losses.texts names no ordinary text to measure side effects on"


def _stage3(_: _Study, found: dict[str, str]) -> str | None:
    unranked = "none of the features that fire with critical ones was seen in the machine's training, so none can be ranked"
    return found.get("inert", f"{unranked}: raise interactions.tokens, or train on more prompts (interactions.sets)")


def _populations(_: _Study, found: dict[str, str]) -> str | None:
    return found.get("inert", "no stage of the search found a feature")


def _taxonomy(study: _Study, _: dict[str, str]) -> str | None:
    label = study.setting("taxonomy", "taxonomy", "label")
    asked = "select any_value(label_role) from prompts where label = $1"
    role = "target" if label is None else study.con.execute(asked, [label]).fetchall()[0][0]
    return f"no {study.words.get(role, label)} prompt has a category: give category to a set of [[prompts]]"


def _concepts(_: _Study, __: dict[str, str]) -> str | None:
    return "concepts.patterns names no concept"


Rule = Callable[[_Study, dict[str, str]], str | None]
RULES: dict[str, tuple[str, Rule]] = {
    "direction": ("directions where chosen", _direction),
    "algorithm1": ("searches where method = 'algorithm1'", partial(_search, "algorithm1")),
    "minimal": ("searches where method = 'minimal'", partial(_search, "minimal")),
    "inert": ("critical_features", _inert),
    "readouts": ("readouts", _readouts),
    "waking": ("waking_passes", _waking),
    "waking_graph": ("wakings", _waking_graph),
    "backups": ("backups", _backups),
    "steering": ("ablations where stage = 'steering'", _steering),
    "losses": ("losses where method = 'minimal'", _losses),
    "stage3": ("ablations where stage = 'stage3'", _stage3),
    "stage3_probe": ("ablations where stage = 'stage3_probe'", _stage3),
    "populations": ("populations", _populations),
    "taxonomy": ("taxonomy", _taxonomy),
    "concepts": ("concepts", _concepts),
}
"""stage -> the rows that say it found something, and why it did not, from the reasons of the stages before it; in their order"""
