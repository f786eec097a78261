"""Whether the unmodified model shows the behaviour at all: asked before anything expensive is computed, where no workers are."""

from collections import Counter
from collections.abc import Sequence

from saelake.analysis.engine.engine import AblationEngine, NotFinite
from saelake.analysis.engine.requests import Request
from saelake.analysis.judges.verdicts import UNANSWERED
from saelake.analysis.search.answers import Judged, judged
from saelake.analysis.study_context import StudyContext
from saelake.ingest.recipe import Recipe
from saelake.queries.output import printable
from saelake.warehouse.errors import UserError

AT_ONCE = 32
"""Prompts that are answered before it is looked whether one of them shows the behaviour."""
QUOTED, LONGEST = 4, 80
"""First tokens that are quoted, and letters of the answer that is."""


def check_shown(context: StudyContext) -> None:
    """Answers prompts on which the direction is chosen until one shows the behaviour; raises UserError where none does.

    The subject alone is loaded for it, without its SAEs, and its memory is given back.
    """
    recipe = context.recipe
    target = context.study.prompts_of(recipe.direction.select_split, "target")
    engine = AblationEngine(context.subject, {}, context.token_ids)
    answers: list[Judged] = []
    for start in range(0, len(target), AT_ONCE):
        try:
            answers += judged(context, [Request(p) for p in target[start : start + AT_ONCE]], engine)
        except NotFinite:  # ingest is next, and names the layer
            break
        if any(a.verdict.refused for a in answers):
            break
    else:
        raise not_shown(recipe, answers)
    del engine
    context.make_room_for(recipe.verdicts.oracle)


def not_shown(recipe: Recipe, answers: Sequence[Judged]) -> UserError:
    """The error that none of these answers shows the behaviour, with what the model says instead and what may be wrong."""
    words, verdicts = recipe.words, recipe.verdicts
    where = f"split {recipe.direction.select_split!r} (direction.select_split)"
    if not answers:
        return UserError(f"the study has no {words['target']} prompt in {where}: a direction is chosen on these")
    common = Counter(a.first_token for a in answers).most_common()
    quoted = ", ".join(f'"{printable(token)}" ({n})' for token, n in common[:QUOTED])
    likely = next(a.completion for a in answers if a.first_token == common[0][0])
    example = printable(likely[:LONGEST]) + ("…" if len(likely) > LONGEST else "")
    oracle = (
        "another judge as verdicts.oracle" if verdicts.oracle == "first_token" else "verdicts.phrases or another verdicts.oracle"
    )
    n_unended = sum(a.verdict.rule == UNANSWERED.rule for a in answers)
    reasoning = (
        f"{n_unended} of them do not get past their reasoning: raise generation.max_new_tokens "
        f"({recipe.generation.max_new_tokens}), or switch reasoning off (model.template_variables). "
    )
    return UserError(
        f"the model does not show the behaviour ({words['name']}): of the {len(answers)} {words['target']} prompts in "
        f"{where} none is {words['shown']} by {verdicts.oracle}; its answers begin with "
        f"{quoted}{', ...' if len(common) > QUOTED else ''}, "
        f'for example "{example}". {reasoning if n_unended else ""}'
        f"If these answers do show it, name their first words as model.target_tokens, or {oracle}; "
        "if they do not, choose other prompts ([[prompts]], direction.select_split), another model or another model.chat_template"
    )
