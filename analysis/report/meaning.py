"""Sections about what features mean: R18 to R20."""

from collections.abc import Sequence

import altair as alt

from saelake.analysis.report import charts
from saelake.analysis.report.answers import Studied
from saelake.analysis.report.blocks import Beside, Block, Cell, Figure, Section, Table, percent


def _taxonomy(study: Studied) -> Sequence[Block]:
    features = alt.X("sum(n_features):Q", title="features after Stage 3", axis=alt.Axis(tickMinStep=1))
    chart = charts.bars(alt.Y("n_categories:O", title="categories"), features, ("n_categories:O", "sum(n_features):Q"))
    cells = [
        Cell("counted", "counted"),
        Cell("categories", "categories"),
        Cell("n_features", "features"),
        Cell("share", "share", "share"),
    ]
    blocks: list[Block] = []
    for mapping, where in (("literal", "on any token, as in the paper"), ("user", "on a token of the user's")):
        answer = study.ask("taxonomy_combinations", population="stage3", mapping=mapping)
        rows = [row for row in answer.rows if row["counted"] == "combination"]
        title = f"Features by the number of categories on which they fire, {where}"
        blocks.append(Figure(title, charts.spec(chart, 180), answer, "Number of features by number of categories", rows))
        blocks.append(Table("By category and combination", answer, cells, shown=60, folded=True))
    return blocks


def _concepts(study: Studied) -> Sequence[Block]:
    answer = study.ask("concepts")
    features = alt.X("n_features:Q", title="critical features", axis=alt.Axis(tickMinStep=1))
    chart = charts.bars(alt.Y("concept:N", title=None, sort=None), features, ("concept:N", "n_features:Q"))
    cells = [
        Cell("concept", "concept"),
        Cell("n_features", "features"),
        Cell("share", "share", "share"),
        Cell("examples", "examples"),
    ]
    title = "Concepts of the critical features, by their explanations"
    return [
        Figure(title, charts.spec(chart, 60 + 26 * len(answer.rows)), answer, "Number of features by concept"),
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
        blocks += [Table(f"Every feature of the annotation study {name}", answer, cells, shown=20), Beside(here)]
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
        "saelake explain {recipe} --source SOURCE",
    ),
    Section(
        "study",
        "What do people say?",
        "Annotators see a feature's explanation and top samples, and choose the categories that apply.",
        _people,
        "R19 · Table 12",
        ("study_*",),
        ("study_scores",),
        "saelake study create NAME, then annotate and study close",
    ),
)
