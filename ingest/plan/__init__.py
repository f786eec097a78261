"""`saelake plan`: what a study will need, before anything is downloaded. estimate.py puts it together, table.py shows it."""
