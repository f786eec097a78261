"""The embedded subject: a tiny chat model that was trained to refuse, its SAEs, its prompts, and the command that builds them.

`python -m saelake.ingest.organism.build` writes model/, saes/layer_{0..5}/, prompts.jsonl and gates.json beside this file; they
are shipped, so that nothing is trained on first use. `organism.md` says how and why.

Letters in tensor names: b batch, t token, d residual width, f features.
"""
