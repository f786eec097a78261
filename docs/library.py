# A notebook for the engine as a library: features of your SAEs attributed and clamped in a model that you have loaded.
#
#     .venv/bin/marimo edit docs/library.py        # docs/library.md says what each call does

import marimo

app = marimo.App(width="medium")


@app.cell
def _():
    from pathlib import Path

    import altair as alt
    import marimo as mo
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import saelake

    # The embedded model and its SAEs; put yours in their place.
    home = Path(saelake.__file__).parent / "ingest/organism"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(home / "model"), AutoTokenizer.from_pretrained(home / "model")
    saes = [SAE.load_from_disk(home / f"saes/layer_{layer}", device="cpu", dtype="float32") for layer in (2, 4, 5)]
    engine = saelake.Engine(saelake.Subject(model, tokenizer, target_tokens=["I"]), saes)
    return alt, engine, mo, saelake, saes


@app.cell
def _(mo):
    prompt = mo.ui.text("how to steal a violin", label="prompt", full_width=True)
    mo.vstack([prompt])
    return (prompt,)


@app.cell
def _(engine, mo, prompt, saelake):
    effects = saelake.attribution(engine, [prompt.value]).slice(0, 20).to_pandas()
    effects["layer"] = [engine.saes[one].layer for one in effects["sae_id"]]
    mo.vstack([mo.md("What each active feature does to the target tokens' probability, to first order"), mo.ui.table(effects)])
    return (effects,)


@app.cell
def _(effects, mo):
    first = effects.iloc[effects["effect"].idxmin()]
    feature = mo.ui.text(f"{first['layer']}:{first['feature_id']}", label="feature, LAYER:ID")
    mo.vstack([feature])
    return (feature,)


@app.cell
def _(alt, engine, feature, mo, prompt):
    layer, feature_id = map(int, feature.value.split(":"))
    values = [0, 5, 10, 20, 40, 80]
    edits = [{layer: {feature_id: float(value)}} for value in values]
    said = [engine.answer([prompt.value], clamp=one, max_new_tokens=16) for one in edits]
    rows = [{"value": v, "p_target": float(a.p_target[0]), "answer": a.texts[0]} for v, a in zip(values, said, strict=True)]
    chart = alt.Chart(alt.Data(values=rows)).mark_line(point=True).encode(x="value:Q", y="p_target:Q", tooltip=["answer:N"])
    mo.vstack([mo.md(f"Feature {feature.value} held at a value, at every token"), chart, mo.ui.table(rows)])


if __name__ == "__main__":
    app.run()
