"""Figures of the paper that several tests need, written out by hand."""

GEMMA_L0 = (43, 54, 77, 42, 46, 53, 56, 57, 59, 61, 66, 70, 72, 75, 73, 68)
"""L0 of the paper's SAE of each of Gemma-2-2B's layers 0 to 15, as Gemma Scope's folders are called."""
