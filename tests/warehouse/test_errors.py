"""Errors of libraries as part of a sentence: whatever line holds the word that matters, it is shown."""

import json

import duckdb
import pyarrow as pa
import pytest

from saelake.warehouse.errors import MOST_SAID, one_line


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


TORCH = 'Error(s) in loading state_dict for JumpReLUSAE:\n\tMissing key(s) in state_dict: "threshold". '
DUCKDB = 'Binder Error: no such column\nCandidate bindings: "x"\n\nLINE 1: select y\n               ^'


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError(TORCH), 'Error(s) in loading state_dict for JumpReLUSAE: Missing key(s) in state_dict: "threshold"'),
        (KeyError("threshold"), "'threshold' is missing"),
        (KeyError("no SAE of that name"), "no SAE of that name"),
        (KeyError(3), "'3' is missing"),
        (KeyError(), "KeyError"),
        (
            ImportError("\n The tokenizer needs the sentencepiece library.\n\nInstall it.\n"),
            "The tokenizer needs the sentencepiece",
        ),
        (OSError("404 Client Error.\n\nRepository Not Found for url: x."), "404 Client Error. Repository Not Found for url: x"),
        (FileNotFoundError(2, "No such file or directory", "/a/b"), "No such file or directory: /a/b"),
        (duckdb.Error(DUCKDB), 'Binder Error: no such column Candidate bindings: "x"'),
        (pa.ArrowInvalid("Could not open\nParquet magic bytes not found"), "Parquet magic bytes"),
        (caused(ValueError("An error occurred while generating"), OSError("row 7 is broken")), "generating: row 7 is broken"),
        (ValueError(), "ValueError"),
    ],
)
def test_the_word_that_matters_is_told(error: Exception, says: str) -> None:
    assert says in one_line(error)
    assert "\n" not in one_line(error)
    assert not one_line(error).endswith(".")


@pytest.mark.parametrize("text", ["x" * 10_000, "many words " * 1_000, "Error: " + "x" * 400 + " is wrong", "ends. " * 100])
def test_a_message_without_end_is_cut(text: str) -> None:
    said = one_line(ValueError(text))
    assert MOST_SAID - 10 < len(said) <= MOST_SAID
    assert said.endswith(" ...")
    assert text.startswith(said.removesuffix(" ..."))


def test_the_place_of_a_mistake_in_json_is_kept() -> None:
    with pytest.raises(ValueError, match="line 2") as error:
        json.loads('{"a": 1,\n b}')
    assert "line 2" in one_line(error.value)
