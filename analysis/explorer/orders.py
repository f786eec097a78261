"""What the explorer's list of features can be sorted by, served or static."""

ORDERS = {
    "critical": "Critical for",
    "auroc": "AUROC",
    "effect": "Effect",
    "recovered": "Recovered",
    "q": "Category q",
    "prompts": "Prompts",
    "largest": "Largest",
    "feature": "Feature",
}
"""An order of the question `feature_list`, and the heading of its column."""
