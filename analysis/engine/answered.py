"""Prompts with their answers: what is asked of the tokens that the model has generated under the same interventions."""

from collections.abc import Sequence

from saelake.analysis.engine.requests import Intervention, Request


def request_of(number: int, acting: tuple[Intervention, ...]) -> Request:
    """The request of a prompt: in the plain form where it is of one, since equal requests are asked once."""
    first = acting[0] if acting else None
    if first is not None and first.answering == (first.positions is None):
        return Request(number, first.features, first.direction, first.positions, acting[1:])
    return Request(number, then=acting)


def with_answer(request: Request, number: int, n: int, answer: Sequence[int]) -> Request:
    """The same request of the prompt with its answer, whose tokens are then positions like others.

    Args:
        number: of the prompt with its answer.
        n: tokens of the prompt alone.
    """
    acting, n_all = [], n + len(answer)
    for one in request.interventions:
        positions = range(n) if one.positions is None else one.positions
        whole = (*positions, *(range(n, n_all) if one.on_answers else ()))
        acting.append(Intervention(one.features, one.direction, None if len(whole) == n_all else whole, answering=False))
    return request_of(number, tuple(acting))
