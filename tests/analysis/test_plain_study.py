"""A study without a template ends where the same texts in a template do: `template = "none"`, from ingest to the last stage."""

import json
from pathlib import Path

import saelake
from saelake.analysis import stage_list, verbs
from saelake.ingest.recipe import load_recipe
from saelake.ingest.subject import Subject
from saelake.warehouse.lake import Lake
from tests.planted import write_planted

TOKENS = "select list(token_id order by pos) from tokens group by prompt_id"
SHARES = "select role, min(pos), count(distinct prompt_id) from tokens group by role order by role"


def test_plain_prompts_are_analysed_as_the_same_tokens_in_a_template_are(tmp_path: Path) -> None:
    """The planted model answers what its template frames; here the frame stands in the prompts themselves."""
    planted = write_planted(tmp_path / "planted")
    framed = load_recipe(planted.recipe).limit(2)
    template = Subject.load(framed.model, framed.compute).template

    in_template = {tuple(template.encode(row["instruction"]).token_ids) for row in planted.prompts()}
    rows = [row | {"instruction": template.render(row["instruction"]).removeprefix("<bos>")} for row in planted.prompts()]
    (planted.folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (planted.folder / "model" / "chat_template.jinja").unlink()
    planted.recipe.write_text(planted.recipe.read_text().replace("[model]", '[model]\ntemplate = "none"'))
    plain = load_recipe(planted.recipe).limit(2)
    lake = Lake.create(tmp_path / "lake")
    records = verbs.analyze(plain, lake)
    n_saes = len(plain.sae_layers)
    computed = ["prompts", *["activations"] * n_saes, *(stage.name for stage in stage_list.stages(plain))]
    assert [record.stage for record in records] == computed

    with saelake.open(lake.root) as opened:
        n = len(opened.sql("from prompts").fetchall())
        assert opened.sql(SHARES).fetchall() == [("bos", 0, n), ("user", 1, n)]
        assert {tuple(ids) for (ids,) in opened.sql(TOKENS).fetchall()} <= in_template
        assert ("I",) in opened.sql("select first_token from ablations where condition = 'none'").fetchall()
        assert opened.query("k_choice").fetchall()
