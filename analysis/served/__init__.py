"""The pages that this machine serves, the explorer's and an annotation study's: their server, templates, and feature cards."""
