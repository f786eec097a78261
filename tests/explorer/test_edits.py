"""Edits as a person writes them into the explorer."""

import numpy as np
import pytest

from saelake.analysis.engine.asked import Ablate, Add, Clamp, ProjectOut
from saelake.analysis.explorer.edits import Vectors, edits_of, in_python, in_shell, read_lines, selected
from saelake.warehouse.errors import UserError

ROW, DIRECTION = np.array([1.0, 2.0]), np.array([3.0, 4.0])
VECTORS = Vectors(lambda sae, feature_id: ROW * feature_id, lambda layer: (2 if layer is None else layer, DIRECTION))


def test_lines_become_the_edits_of_the_library() -> None:
    text = """
    # what refuses
    ablate 5:177, 4:256,5:3
    clamp layer_04-x:7 = -1.5 at -1, user
    add 4:256 * 10
    add chosen
    project out chosen
    project out direction 3 at user
    """
    first, second, clamp, row, chosen, out, of_layer = edits_of(read_lines(text), VECTORS)
    assert isinstance(first, Ablate)
    assert (first.sae, first.ids, first.positions) == (5, [177, 3], None)
    assert isinstance(second, Ablate)
    assert (second.sae, second.ids) == (4, [256])
    assert isinstance(clamp, Clamp)
    assert (clamp.sae, clamp.ids, clamp.values, clamp.positions) == ("layer_04-x", [7], -1.5, [-1, "user"])
    assert isinstance(row, Add)
    assert (row.site, list(row.vector), row.scale) == (4, [256.0, 512.0], 10.0)
    assert isinstance(chosen, Add)
    assert (chosen.site, list(chosen.vector), chosen.scale) == (2, [3.0, 4.0], 1.0)
    assert isinstance(out, ProjectOut)
    assert out.site == "all"
    assert isinstance(of_layer, ProjectOut)
    assert (of_layer.site, of_layer.positions) == (3, ["user"])


@pytest.mark.parametrize(
    "line",
    [
        "ablate",
        "ablate 5",
        "ablate 5:x",
        "clamp 5:1",
        "clamp 5:1 = nan",
        "clamp 5:1, 5:2 = 3",
        "add * 3",
        "add mean * 3",
        "project 5:1",
        "ablate 5:1 at nowhere",
        "drop table prompts",
        "ablate 5:1; ablate 5:2",
        "<script>alert(1)</script>",
    ],
)
def test_what_is_no_edit_is_refused(line: str) -> None:
    with pytest.raises(UserError, match=r"is not an edit|neither a position"):
        read_lines(line)
    assert read_lines("\n  \n# a note") == []


def test_the_same_edits_in_python_and_as_a_command() -> None:
    lines = read_lines("ablate 5:177\nablate 4:256")
    assert in_python(lines, "it's", 16) == (
        'engine.answer(["it\'s"], max_new_tokens=16, edits=[saelake.Ablate(5, [177]), saelake.Ablate(4, [256])])'
    )
    assert in_shell(lines, "organism", "mine") == "saelake ablate organism --features 5:177,4:256 --condition mine"
    assert selected(read_lines("ablate 5:1\nclamp 4:2 = 3 at -1")) == (
        "select * from (values (5, 1, 0.0, null::varchar), (4, 2, 3.0, '-1')) as edits(sae, feature, value, positions)"
    )
    assert "('a-b', 1, 0.0, null::varchar)" in selected(read_lines("clamp a-b:1 = 0"))
    for text in ("", "add chosen * 3", "project out chosen"):
        with pytest.raises(UserError, match=r"no edit to keep|ablated or clamped"):
            selected(read_lines(text))
