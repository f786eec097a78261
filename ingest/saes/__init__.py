"""Sparse autoencoders: which ones a recipe names (refs, facts, labels: no torch), loaded (sae, shelf), trained (train)."""
