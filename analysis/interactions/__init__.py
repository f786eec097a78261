"""What features do to each other, and what else ablating them does: waking, backups, Stage 3, side effects, tests."""
