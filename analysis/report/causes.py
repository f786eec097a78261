"""Sections about what kind of causes critical features are: do they only write the answer out, and what stands in for them?"""

from collections.abc import Mapping, Sequence
from typing import Any

from saelake.analysis.interactions.statistics import sign_test
from saelake.analysis.report.answers import Answer, Studied
from saelake.analysis.report.blocks import Block, Cell, Note, Section, Table, percent

BACKUPS_PAGE = "backups.html"
"""The report of the study with backups, as `make report` and `make backups` write it."""
MOSTLY = 0.5
"""Share of flips from which on a study is said to find read-outs for the most part."""
CHANCE = 0.05
"""How probable by chance may be what is called a backup."""


def _readouts(study: Studied) -> Sequence[Block]:
    sets, features = study.ask("readout_sets"), study.ask("readouts")
    of_sets = [
        Cell("method", "sets"),
        Cell("n_sets", "sets"),
        Cell("n_flip", "flip"),
        Cell("n_direct_flip", "by the direct path alone"),
        Cell("effect", "effect (nats, median)"),
        Cell("direct", "direct"),
        Cell("share", "share", "share"),
    ]
    of_ones = [
        Cell("layer", "layer"),
        Cell("feature_id", "feature"),
        Cell("n_prompts", "critical on"),
        Cell("n_flip", "flips alone"),
        Cell("cosine", "cosine with the unembedding"),
        Cell("effect", "effect (nats)"),
        Cell("direct", "direct"),
        Cell("share", "share", "share"),
        Cell("is_readout", "read-out"),
    ]
    written = [
        Cell("layer", "layer"),
        Cell("feature_id", "feature"),
        Cell("n_prompts", "critical on"),
        Cell("promoted", "promotes"),
        Cell("suppressed", "suppresses"),
        Cell("skewness", "skewness"),
    ]
    return [
        *_warning(sets, features, study),
        Table("What of the flips the direct path explains", sets, of_sets),
        Table("Critical features, and what of their effect is direct", features, of_ones, shown=20),
        Table(
            "The tokens that critical features' decoder rows promote and suppress",
            study.ask("critical_logits"),
            written,
            shown=20,
        ),
    ]


def _warning(sets: Answer, features: Answer, study: Studied) -> list[Block]:
    """What the study can and cannot say of causes, in words."""
    row = sets.one(method="minimal")
    if row is None or not row["n_flip"]:
        return []
    of_flips = row["n_direct_flip"] / row["n_flip"]
    written = [one for one in features.rows if one["is_readout"]]
    first = (
        f"{len(written):,} of {len(features.rows):,} critical features are read-outs: at least half of their effect is direct."
    )
    found = f"{percent(of_flips)} of the flips of minimal sets happen by the direct path alone."
    notes: list[Block] = []
    if of_flips >= MOSTLY:
        notes.append(
            Note(
                f"Warning: for the most part this study finds read-outs. {found} {first} Ablating such features changes what is "
                "said at the last moment; it does not show what made the model decide so. Search lower layers "
                "(direction.drop_last_layers, candidates.exclude_layers)."
            )
        )
    else:
        notes.append(Note(f"{found} {first}"))
    layer, last = chosen_layer(study)
    if layer is not None and layer == last:
        notes.append(
            Note(
                f"The chosen direction is that of layer {layer}, the last one: it holds what is about to be said. By default "
                "direction.drop_last_layers leaves the last fifth of the layers out; this study's recipe does not."
            )
        )
    return notes


def chosen_layer(study: Studied) -> tuple[int | None, int | None]:
    """The layer of the chosen direction, if there is one, and the last layer that has one."""
    rows = study.ask("directions").rows
    chosen = [row["layer"] for row in rows if row["chosen"]]
    return (chosen[0] if chosen else None), max((row["layer"] for row in rows), default=None)


def _backups(study: Studied) -> Sequence[Block]:
    answer, features = study.ask("backups", judge=study.judge), study.ask("backup_features")
    cells = [
        Cell("source", "ablated"),
        Cell("n_sources", "sources"),
        Cell("n_flip", "flip alone"),
        Cell("n_tested", "do not, and wake something"),
        Cell("n_backed_up", "flip with what wakes"),
        Cell("n_compared", "have others to compare with"),
        Cell("n_random", "flip with as many others"),
        Cell("p_source", "P(target) source"),
        Cell("p_woken", "with what wakes"),
        Cell("p_random", "with others"),
        Cell("n_lower", "lower"),
        Cell("n_higher", "higher"),
        Cell("n_more", "families: more flips"),
        Cell("n_less", "fewer"),
    ]
    backups = [
        Cell("layer", "layer"),
        Cell("feature_id", "feature"),
        Cell("n_backup", "backup on prompts"),
        Cell("n_alone", "by itself"),
        Cell("n_woken", "wakes on"),
        Cell("sources", "stands in for"),
    ]
    return [
        *(Note(study.say(sentence)) for row in answer.rows if (sentence := backup_sentence(row))),
        *_elsewhere(study, answer),
        Table("Does what wakes restore the behaviour?", answer, cells),
        Table("Backups: what wakes and whose removal flips", features, backups, shown=15),
    ]


def _elsewhere(study: Studied, backups: Answer) -> list[Block]:
    """Where backups are to be seen, for a study that shows none."""
    if study.recipe == "hydra" or any(_shows_backups(row) for row in backups.rows):
        return []
    seen = "beyond chance is seen" if any(row["n_backed_up"] for row in backups.rows) else "is seen"
    other = (
        f"No backup {seen} here. The shipped study hydra asks the same, with the same controls, of a model trained to have some:"
    )
    if study.has_backups_page:
        return [Note(other, f"{BACKUPS_PAGE}#{BACKUPS.key}")]
    commands = "`saelake analyze hydra --lake lake-hydra`, then `saelake report --lake lake-hydra --output backups.html`"
    return [Note(f"{other} {commands} (`make backups` does both).")]


def by_chance(row: Mapping[str, Any]) -> float:
    """How probable it is that so many families flip more with what wakes than with others, if both do alike (sign test)."""
    return sign_test(row["n_more"], row["n_less"], one_sided=True)


def _shows_backups(row: Mapping[str, Any]) -> bool:
    """Whether a row of the question backups has more of them than chance."""
    return by_chance(row) <= CHANCE


SOURCES = {"one": "single critical features", "minimal": "minimal sets"}


def backup_sentence(row: Mapping[str, Any]) -> str:
    """What a row of the question backups shows, in words; nothing where it is about no source."""
    what = SOURCES.get(row["source"], f"sets of {row['source']}")
    if not row["n_sources"]:
        return ""
    if not row["n_tested"]:
        return (
            f"Of {row['n_sources']:,} {what} that fire, {row['n_flip']:,} flip their prompt alone and {row['n_wake']:,} wake "
            "anything; none wakes something without flipping, so nothing can be said about backups."
        )
    found = (
        f"Of {row['n_tested']:,} {what} that do not flip their prompt alone and wake something, {row['n_backed_up']:,} flip it "
        f"when what wakes is ablated too, and {_others(row)}."
    )
    if not row["n_compared"] and row["n_backed_up"]:
        return f"{found} Whether chance does as much is not known."
    found += f" On {row['n_more']:,} families of prompts more of them do with what wakes, on {row['n_less']:,} fewer"
    found += f" (sign test: p = {by_chance(row):.2g})."
    if _shows_backups(row):
        return f"{found} What wakes there stands in for its source: it is a backup."
    if row["n_backed_up"] > row["n_random"]:
        why = "too few, or without others to compare with," if row["n_compared"] < row["n_tested"] else "too few"
        return f"{found} These are {why} to tell a backup from chance."
    opposite = f" For {row['n_higher']:,} of them that makes the behaviour likelier instead, for {row['n_lower']:,} less likely."
    return f"{found}{opposite} What wakes there is not a backup, and is not called redundant."


def _others(row: Mapping[str, Any]) -> str:
    """What the control of a row of the question backups shows: it has none where nothing else fires that could be ablated."""
    if row["n_compared"] == row["n_tested"]:
        return f"{row['n_random']:,} when as many other active features are"
    if not row["n_compared"]:
        return "there are no other active features to ablate instead"
    return (
        f"{row['n_random']:,} of the {row['n_compared']:,} that have other active features to ablate instead flip it with as many"
    )


READOUTS = Section(
    "readouts",
    "Causes, or read-outs?",
    "A feature that writes the answer's first word flips a prompt when it is ablated, whatever made the model choose that word. "
    "Each critical feature and set is ablated once everywhere, and once with only what it adds at the last token taken out "
    "after the last block, where only the final norm and the unembedding follow: its direct effect.",
    _readouts,
    "R6",
    ("readouts",),
)
BACKUPS = Section(
    "backups",
    "Does what wakes restore the behaviour?",
    "Each source is ablated alone, with what wakes when it goes, and with as many other active features, or fewer where its "
    "prompt has no more. A backup is what wakes and whose removal flips; whatever else wakes is a side effect.",
    _backups,
    "R13",
    ("backups",),
)
