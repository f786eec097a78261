"""The same prompts through other libraries that run the model: what each reads at which site, and where two of them diverge."""
