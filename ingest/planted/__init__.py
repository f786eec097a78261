"""The planted network: a model and SAEs whose weights were set by hand, so that the causes of its refusal are known.

`python -m saelake.ingest.planted.build` writes model/, saes/layer_{0..5}/ and prompts.jsonl beside this file; they are shipped.
`planted.md` says what is planted. Letters in tensor names: d residual width, f features, c coordinates of the planted basis.
"""
