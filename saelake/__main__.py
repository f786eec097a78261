"""`python -m saelake`: the command line."""

from saelake.cli import main

main(prog_name="saelake")
