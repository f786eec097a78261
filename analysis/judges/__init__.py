"""Judges: what reads an answer and says whether it shows the behaviour, or is not sensible text."""
