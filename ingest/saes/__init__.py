"""Sparse autoencoders: which ones a recipe names (refs, description, labels: no torch), loaded (sae, loader), trained (train)."""
