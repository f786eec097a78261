"""The science: stages that are each a run, computed by the ablation engine from the tables of the runs before them."""
