"""In and out: what other tools have written becomes runs of a lake, and what a lake holds becomes files that they read.

    saelake import harmbench results/model.json --recipe mine        saelake export features out/ --features 5:177,4:256

Each format is a module of `known/` that ends in `FORMAT = Format(...)`; its file's name is the format's. Nothing in a source is
believed: it is read whole, compared with the study that it joins, and only then published, as a run that says where it is from.
"""
