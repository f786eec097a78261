"""The search for causes: directions, candidates, Algorithm 1, minimal sets, and the controls that they are compared with."""
