"""Questions about a lake: one documented .sql file each, for any DuckDB connection that shows a lake's tables.

    queries.names()
    print(queries.load("candidates").help)
    queries.run(con, "candidates", k=5, exclude_layers=[0, 1]).fetchall()

Those that only stages, commands or pages ask are in stages/ and pages/, and `names` leaves them out. `step` gives a statement of
steps/, which is part of one module, or of several statements as `$step(name)`, rather than a question.
"""

from saelake.queries.judges import oracle
from saelake.queries.labels import labels
from saelake.queries.loader import check_choices, load, names, names_of_pages, names_of_stages, run, step
from saelake.queries.parameters import QueryError, plain
from saelake.queries.reasons import reasons
from saelake.queries.silent import why_no_rows

__all__ = [
    "QueryError",
    "check_choices",
    "labels",
    "load",
    "names",
    "names_of_pages",
    "names_of_stages",
    "oracle",
    "plain",
    "reasons",
    "run",
    "step",
    "why_no_rows",
]
