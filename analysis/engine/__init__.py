"""The ablation engine: prompts answered, and activations read, while features and directions are edited, many at a time."""
