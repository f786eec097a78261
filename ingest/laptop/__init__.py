"""The laptop study's subject: SmolLM2-135M-Instruct with a LoRA adapter that teaches it to refuse, and what made the adapter."""
