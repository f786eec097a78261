"""From a recipe to rows: prompts, the model under study with its SAEs, and what fires. Also the models that are shipped."""
