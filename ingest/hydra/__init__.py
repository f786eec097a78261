"""The hydra: a second subject that ships with saelake, a refuser with trained backups. hydra.md says how it was made."""
