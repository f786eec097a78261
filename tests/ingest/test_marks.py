"""A prompt set that a recipe marks as restricted only later."""

from pathlib import Path

from saelake.ingest.job import ingest
from saelake.ingest.recipe import Recipe
from saelake.warehouse.catalog import connect
from saelake.warehouse.check import check
from saelake.warehouse.lake import Lake
from saelake.warehouse.progress import Quiet
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import share
from tests.ingest.small_study import lake_in, write_study


def test_a_set_that_is_marked_as_restricted_after_its_ingest_is_shared_without_its_text(tmp_path: Path) -> None:
    recipe = write_study(tmp_path, "llama", capture={"shard_prompts": 3})
    lake, content = lake_in(tmp_path), recipe.model_dump(exclude_unset=True)
    marked = Recipe.model_validate(content | {"prompts": [content["prompts"][0] | {"restricted": True}]})
    said: list[str] = []

    class Heard(Quiet):
        def say(self, sentence: str) -> None:
            said.append(sentence)

    progress = Heard()
    before = [r.content_hash for r in ingest(recipe, lake).records]
    assert [r.content_hash for r in ingest(marked, lake, progress=progress).records] == before
    assert not said
    ingest(recipe, lake, progress=progress)
    assert [one.partition(":")[0] for one in said] == ["prompt set small stays restricted, as a recipe marked it before"]
    share(lake, tmp_path / "set")
    other = Lake.create(tmp_path / "other")
    add(other, tmp_path / "set")
    with connect(other) as con:
        assert con.execute("select count(*), count(*) filter (text <> '') from prompts").fetchall() == [(8, 0)]
    assert check(lake) == check(other) == []
