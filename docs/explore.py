# A notebook for looking around in a lake: SQL cells and plots.
#
#     .venv/bin/marimo edit docs/explore.py        # SAELAKE_LAKE names the lake, ./lake by default

import marimo

app = marimo.App(width="medium")


@app.cell
def _():
    import os

    import altair as alt
    import marimo as mo

    import saelake

    lake = saelake.open(os.environ.get("SAELAKE_LAKE", "lake"))
    engine = lake.connection
    return alt, engine, lake, mo


@app.cell
def _(lake, mo):
    mo.md(f"""# A lake of {", ".join(lake.studies)}\n\nIts tables: {", ".join(lake.tables())}.""")


@app.cell
def _(engine, mo):
    layers = mo.sql(
        """
        select layer, count(*) as nonzeros, count(distinct feature_id) as features_firing
        from activations
        group by layer
        order by layer
        """,
        engine=engine,
    )
    return (layers,)


@app.cell
def _(alt, layers):
    alt.Chart(layers).mark_bar().encode(x="layer:O", y="nonzeros:Q", tooltip=["nonzeros", "features_firing"])


@app.cell
def _(layers, mo):
    layer = mo.ui.dropdown([str(value) for value in layers["layer"]], value=str(layers["layer"][len(layers) - 1]), label="layer")
    layer
    return (layer,)


@app.cell
def _(engine, layer, mo):
    features = mo.sql(
        f"""
        select feature_id, n_target, n_control, max_activation
        from features
        where layer = {int(layer.value)} and n_prompts > 0
        """,
        engine=engine,
    )
    return (features,)


@app.cell
def _(alt, features, mo):
    points = (
        alt.Chart(features)
        .mark_circle(opacity=0.6)
        .encode(
            x=alt.X("n_control:Q", title="control prompts on which it fires"),
            y=alt.Y("n_target:Q", title="target prompts on which it fires"),
            size="max_activation:Q",
            tooltip=["feature_id", "n_target", "n_control", "max_activation"],
        )
    )
    picture = mo.ui.altair_chart(points)
    picture
    return (picture,)


@app.cell
def _(lake, layer, mo, picture):
    chosen = [int(value) for value in picture.value["feature_id"]][:20]
    listed = ",".join(f"{layer.value}:{feature}" for feature in chosen)
    samples = (
        lake.query("top_samples", features=listed, n=3).pl() if listed else mo.md("Choose points above to see where they fire.")
    )
    samples


@app.cell
def _(engine, mo):
    rates = mo.sql(
        """
        select a.condition, a.k, avg(v.flipped::int) as flipped
        from ablations as a
        join verdicts as v using (ablation_id)
        join prompts as p using (prompt_id)
        where p.label = 'harmful' and a.condition in ('top_k_own', 'top_k_chosen', 'random')
        group by all
        order by all
        """,
        engine=engine,
    )
    return (rates,)


@app.cell
def _(alt, rates):
    alt.Chart(rates).mark_line(point=True).encode(x="k:Q", y=alt.Y("flipped:Q", axis=alt.Axis(format="%")), color="condition:N")


if __name__ == "__main__":
    app.run()
