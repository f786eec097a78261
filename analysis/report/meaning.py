"""Sections about what features mean: R18 to R20."""

from collections.abc import Sequence

import altair as alt

from analysis.report import charts
from analysis.report.answers import Studied
from analysis.report.blocks import Beside, Block, Cell, Figure, Section, Table, percent


def _taxonomy(study: Studied) -> Sequence[Block]:
    answer = study.ask("taxonomy_combinations")
    rows = [row for row in answer.rows if row["counted"] == "combination"]
    features = alt.X("sum(n_features):Q", title="features")
    chart = charts.bars(alt.Y("n_categories:O", title="categories"), features, ("n_categories:O", "sum(n_features):Q"))
    cells = [
        Cell("counted", "counted"),
        Cell("categories", "categories"),
        Cell("n_features", "features"),
        Cell("share", "share", "share"),
    ]
    return [
        Figure("Features by the number of categories on which they fire", charts.spec(chart, 200), answer, "Bars", rows),
        Table("Features by category and combination", answer, cells, shown=30),
    ]


def _concepts(study: Studied) -> Sequence[Block]:
    answer = study.ask("concepts")
    chart = charts.bars(
        alt.Y("concept:N", title=None, sort=None), alt.X("n_features:Q", title="critical features"), ("concept:N", "n_features:Q")
    )
    cells = [
        Cell("concept", "concept"),
        Cell("n_features", "features"),
        Cell("share", "share", "share"),
        Cell("examples", "examples"),
    ]
    return [
        Figure(
            "Concepts of the critical features, by their explanations", charts.spec(chart, 260), answer, "Features by concept"
        ),
        Table("With examples", answer, cells, shown=30, folded=True),
    ]


def _people(study: Studied) -> Sequence[Block]:
    cells = [
        Cell("item", "item"),
        Cell("stratum", "stratum"),
        Cell("layer", "layer"),
        Cell("feature_id", "feature"),
        Cell("majority", "majority"),
        Cell("truth", "fires on"),
        Cell("score", "score", "share"),
        Cell("precision", "precision", "share"),
    ]
    blocks: list[Block] = []
    for (name,) in study.con.execute("select distinct study from annotations order by study").fetchall():
        answer = study.ask("study_scores", study=name)
        scores = [row["score"] for row in answer.rows if row["score"] is not None]
        here = {"score": percent(sum(scores) / len(scores))} if scores else {}
        blocks += [Table(f"Every feature of the study {name}", answer, cells, shown=20), Beside(here)]
    return blocks


SECTIONS = (
    Section(
        "taxonomy",
        "On which kinds of harm do features fire?",
        "Each feature is mapped to every category of labelled prompts on which it is non-zero.",
        _taxonomy,
        "R18 · Figure 3",
        ("taxonomy",),
        ("taxonomy_combinations",),
    ),
    Section(
        "concepts",
        "What are they about?",
        "Concepts by patterns over the features' explanations.",
        _concepts,
        "R20 · Tables 4, 7, 8, 10, 11",
        ("concepts", "explanations"),
        ("concepts",),
        "saelake explain {recipe}",
    ),
    Section(
        "study",
        "What do people say?",
        "Annotators see a feature's explanation and top samples, and choose the categories that apply.",
        _people,
        "R19 · Table 12",
        ("study_*",),
        ("study_scores",),
        "saelake study create NAME",
    ),
)
