"""The command line: the verbs of commands/, each a thin layer over the function that does the work.

    saelake analyze organism --lake ./lake
    saelake query asr --lake ./lake --format csv

Everything heavy is imported by the command that needs it, so that help and SQL answer at once.
"""

import click

from saelake.commands import ask, backends, compute, followup, formats, lake, meaning, prepare, sharing, steer
from saelake.commands.groups import OneSentence


@click.group(cls=OneSentence, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="saelake")
def main() -> None:
    """A language model's sparse-autoencoder activations as a data lake: query them with SQL, find the features that cause a
    behaviour.

    Start with `saelake analyze organism`, then `saelake queries` and `saelake sql "show tables"`.
    """


main.add_section("Prepare", prepare.COMMANDS)
main.add_section("Compute", (*compute.COMMANDS, *followup.COMMANDS, *steer.COMMANDS, *backends.COMMANDS))
main.add_section("Ask", ask.COMMANDS)
main.add_section("Look at features", meaning.COMMANDS)
main.add_section("Report, share, exchange", (*sharing.COMMANDS, *formats.COMMANDS))
main.add_section("Maintain the lake", lake.COMMANDS)

if __name__ == "__main__":
    main()
