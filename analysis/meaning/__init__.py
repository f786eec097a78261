"""What features mean: categories, explanations, concepts and logits, and annotation studies in which people say it."""
