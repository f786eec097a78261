"""What a study shows of each of the paper's claims, and what it cannot show: the page that a referee would write.

Every figure comes from a question over the lake. What a study cannot show is said whether its figures are good or bad.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from saelake.analysis.report import evidence
from saelake.analysis.report.answers import Studied, as_said
from saelake.analysis.report.blocks import Block, Claim, Claims, Section
from saelake.analysis.report.evidence import always
from saelake.warehouse.errors import LeftOut, view_errors


class Row(NamedTuple):
    """One row of the replication list."""

    row: str
    claim: str
    """What the paper says or does, in our words; like all sentences here in the study's words (`Studied.say`)."""
    published: str
    """The figures that it gives for its two models."""
    stages: tuple[str, ...]
    """Without which nothing can be said, as patterns."""
    shows: Callable[[Studied], str]
    cannot: Callable[[Studied], str]


def claims(study: Studied) -> list[Claim]:
    """All rows, for a study."""
    return [_claim(one, study) for one in ROWS]


def _claim(one: Row, study: Studied) -> Claim:
    absent = study.absent(one.stages)
    shows = _missing(absent) if absent else _shown(one.shows, study) or "Nothing: no rows."
    return Claim(one.row, study.say(one.claim), one.published, study.say(shows), study.say(_shown(one.cannot, study)))


def _missing(stages: Sequence[str]) -> str:
    if "study_*" in stages:
        return "Nothing: there is no annotation study."
    return f"Nothing: {' and '.join(stages)} {'is' if len(stages) == 1 else 'are'} not computed."


def _shown(sentence: Callable[[Studied], str], study: Studied) -> str:
    """A sentence made from the study's tables, or that a shared set has left one of them out."""
    try:
        with view_errors(study.con):
            return sentence(study)
    except LeftOut as error:
        return f"Nothing: {as_said(str(error))}."


def _render(study: Studied) -> Sequence[Block]:
    return [Claims(claims(study))]


ROWS = (
    Row(
        "R1",
        "SAE features of two chat models were studied.",
        "Gemma-2-2B-IT with SAEs of 65k features a layer, LLaMA-3.1-8B-IT with 128k.",
        (),
        evidence.model,
        evidence.other_model,
    ),
    Row(
        "R2",
        "861 {target} prompts, all {shown}.",
        "The rates before ablation are 4 of 861 (Gemma) and 71 of 861 (LLaMA): some are answered.",
        ("baseline",),
        evidence.prompts,
        evidence.families,
    ),
    Row(
        "R3",
        "One direction mediates {name}.",
        "Layer 16 (Gemma), 13 (LLaMA).",
        ("direction", "baseline"),
        evidence.direction,
        evidence.of_direction,
    ),
    Row(
        "R4",
        "The residual stream of {target} prompts lies along the direction, more so with depth.",
        "Figures 4 and 5.",
        ("layer_diagnostic",),
        evidence.diagnostic,
        always("That the model uses it: a difference of means separates by construction the prompts that it is made of."),
    ),
    Row(
        "R5",
        "Some features of each SAE, by their cosine with the direction, flip a prompt.",
        "Up to K = 200 a layer (Gemma), K = 10 (LLaMA).",
        ("candidates",),
        evidence.top_k,
        always("That these features are the cause: their number is chosen so that something flips; see R6, R15."),
    ),
    Row(
        "R6",
        "A greedy search prunes them to the few that matter.",
        "The rate of answers rises from 4 of 861 to 0.33 with 2,538 features (Gemma), from 71 to 0.70 with 110 (LLaMA).",
        ("algorithm1", "minimal"),
        evidence.searches,
        evidence.of_searches,
    ),
    Row(
        "R7",
        "Flips are real answers, by a list of phrases and a classifier.",
        "",
        ("baseline",),
        evidence.judges,
        always("That an answer is of use, or does harm, where no classifier read it; fluent nonsense passes the rules."),
    ),
    Row(
        "R8",
        "Many critical features are silent on the very prompt that they are critical for.",
        "1,656 features (Gemma), 77 (LLaMA); without them 103 and 372 prompts flip.",
        ("inert",),
        evidence.inert,
        always("Dormancy: on the prompt's own pass a silent feature does nothing when it is ablated, unless it wakes first."),
    ),
    Row(
        "R9",
        "A factorisation machine tells {target} from {control} by pairs of features.",
        "98% of the test prompts, on both models.",
        ("fm",),
        evidence.machine,
        always(
            "Which pairs interact: on planted pairs the machine finds partners with thousands of training rows, not hundreds."
        ),
    ),
    Row(
        "R10",
        "Features near the critical ones in the machine's embedding matter, too.",
        "A rate of 0.31 with 3,178 features (Gemma), 0.61 with 1,509 (LLaMA).",
        ("stage3",),
        evidence.stage3,
        evidence.of_stage3,
    ),
    Row(
        "R11",
        "These new features act through the critical ones.",
        "Alone they flip 8 prompts, 3% (Gemma), and 330 of 372 (LLaMA), where 12% of the critical ones switch off and the others "
        "fall by 81%.",
        ("stage3",),
        evidence.links,
        always("Which way the influence goes within a site, or that critical ones that fall would have acted."),
    ),
    Row(
        "R12",
        "A linear probe finds far fewer.",
        "101 flips (LLaMA).",
        ("probe", "stage3_probe"),
        evidence.probe,
        always("That a probe is worse than the machine: by the size of its weights it also picks what speaks for {control}."),
    ),
    Row(
        "R13",
        "Redundant features wake when others are ablated, and stand in for them.",
        "74% wake at system tokens, 97% of these at the first (LLaMA); 16% wake at the first token (Gemma).",
        ("waking_graph",),
        evidence.hydra,
        always(
            "That what wakes is a backup, where its removal flips nothing more; sources without a matched control are untested."
        ),
    ),
    Row(
        "R14",
        "Clamping such features makes {control} prompts {shown}.",
        "Examples, in Tables 5 and 6.",
        ("steering",),
        evidence.clamping,
        always("That features that do nothing alone do nothing together with others, or at other tokens."),
    ),
    Row(
        "R15",
        "As many random active features flip hardly anything.",
        "5 prompts (Gemma), none (LLaMA).",
        ("controls",),
        evidence.random,
        always(
            "That critical features are special beyond their strength: random ones are not matched in how strongly they fire."
        ),
    ),
    Row(
        "R16",
        "Ablation costs little on ordinary text.",
        "Table 9.",
        ("losses",),
        evidence.effects,
        evidence.of_effects,
    ),
    Row(
        "R17",
        "Features chosen by how often they fire flip little.",
        "A rate of 0.1 at best (Gemma), 0.07 (LLaMA).",
        ("controls",),
        evidence.firing,
        always("That frequency is no use with another threshold, or other SAEs."),
    ),
    Row(
        "R18",
        "Features map to categories of harm.",
        "Figure 3.",
        ("taxonomy",),
        evidence.taxonomy,
        always("That a feature means a category: it fires on it, among other things."),
    ),
    Row(
        "R19",
        "People hardly recover categories from explanations.",
        "A score of 13.42%.",
        ("study_*",),
        evidence.rows_of("annotations", "annotations"),
        always("How others would judge; and without a true category a feature scores if None is chosen."),
    ),
    Row(
        "R20",
        "Explanations and concept groups say what features are about.",
        "Tables 4, 7, 8, 10 and 11.",
        ("explanations",),
        evidence.rows_of("explanations", "explanations"),
        always("That an explanation is right: it was made from a few activating texts."),
    ),
    Row(
        "R21",
        "Variation and tests are reported.",
        "",
        ("statistics",),
        evidence.tests,
        always("Anything about another model, or prompts of other families, by tests on these."),
    ),
)
SECTION = Section(
    "claims",
    "What can be concluded, and what cannot",
    "Row by row of the paper that this study follows: what it claims, what this study's tables show, and what they cannot show.",
    _render,
    "R1 to R21",
    ("baseline",),
)
