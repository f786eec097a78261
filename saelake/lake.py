"""A lake from Python, by SQL and by the shipped questions.

`OpenLake.sql` and `OpenLake.query` give a DuckDB relation: fetchall(), to_arrow_table(), write_parquet(...), and with
pandas or polars installed df() or pl().

Sparse matrices, of a lake or of a shared set without one:

    matrix, rows, features = saelake.open("lake").sparse(layer=4)                          # SciPy CSR, prompts x features
    matrix, rows, features = saelake.sparse("set/data/activations/*.parquet", layer=4, rows="token", library="torch")

Only `OpenLake.dataset` and library="torch" need torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import duckdb

from saelake import queries
from saelake.warehouse import arguments
from saelake.warehouse.catalog import connect, current_runs, files_behind, only_study, several_studies
from saelake.warehouse.errors import UserError, view_errors
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord
from saelake.warehouse.views import ShownRuns

if TYPE_CHECKING:
    from saelake.analysis.rows_dataset import LakeRows
    from saelake.queries.sparse import Sparse


ENGINES = ("duckdb", "spark")


@dataclass(eq=False)
class OpenLake:
    """A lake's tables on an in-memory DuckDB connection; plain names show the current runs of one study, or of all."""

    connection: duckdb.DuckDBPyConnection
    shown: ShownRuns
    """The runs that they show."""
    lake: Lake
    recipe: str | None = None
    """The study that `open` was given, if any."""

    @property
    def studies(self) -> tuple[str, ...]:
        """The recipes whose current runs the plain table names show."""
        return (self.recipe,) if self.recipe else self.shown.studies

    def sql(self, statement: str, params: Any = None) -> duckdb.DuckDBPyRelation:
        """The rows of a SQL statement, with prepared parameters if any; None, as DuckDB has it, for one without rows (`set ...`).

        Raises duckdb.Error, also when the rows are read, for what is damaged inside a file; UserError for a table that lacks a
        file, has one of another size, or was left out of a shared set.
        """
        arguments.text("the statement", statement)
        if params is not None and not isinstance(params, list | tuple | dict):
            raise UserError(f"params is {arguments.shown(params)}: give a list of values, or {{name: value}}")
        self._renew()
        with view_errors(self.connection):
            return self.connection.sql(statement, params=params)

    def query(self, name: str, /, *, engine: str = "duckdb", **params: Any) -> duckdb.DuckDBPyRelation:
        """The rows of a question from `queries/`, computed by "duckdb" or, for lakes too large for one machine, by "spark".

        Raises as `sql` does, QueryError for a wrong name or parameter, and UserError if it is about one study and the lake
        shows several.
        """
        if arguments.one_of("engine", engine, ENGINES) == "duckdb":
            return self.sql(self.statement(name, **params))
        from saelake.queries import spark

        asked = self._checked(name, params)
        with view_errors(self.connection):
            return spark.run(self.connection, spark.session(), name, files_behind(self.lake, self.shown), **asked)

    def statement(self, name: str, /, **params: Any) -> str:
        """The SQL of a question with its values, for any DuckDB client of the lake; raises as `query` does."""
        asked = self._checked(name, params)
        with view_errors(self.connection):
            return queries.load(name).statement(self.connection, asked)

    def _checked(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """A question's parameters as plain values, if it can be asked so."""
        asked = queries.plain(params)
        if queries.load(arguments.text("the question", name)).of_one_study and len(self.studies) > 1:
            raise several_studies(self.lake, self.studies)
        self._renew()
        with view_errors(self.connection):
            queries.check_choices(self.connection, name, asked)
        return asked

    def sparse(self, **options: Any) -> "Sparse":
        """Activations as a sparse matrix: layer=4, rows="prompt" or "token", bos=False, library="scipy" or "torch".

        It has a row for every prompt (or token) of the study and a column for every feature of its SAEs. By default rows are
        prompts, and BOS tokens count; `dataset` has the opposite defaults. Raises QueryError for a wrong option, UserError
        for another library, and where the lake shows several studies.
        """
        from saelake.queries.sparse import sparse

        library = options.pop("library", "scipy")
        asked = self._checked("sparse", options)
        with view_errors(self.connection):
            return sparse(self.connection, library=library, **asked)

    def dataset(self, **options: Any) -> "LakeRows":
        """A PyTorch IterableDataset of batches, for those who train on activations; needs the extra `compute`.

        Options are layer, rows ("token" or "prompt"), bos, batch_rows, dense, shuffle and seed. By default rows are tokens, and
        BOS tokens are left out; `sparse` has the opposite defaults. Raises UserError for a wrong one, and where the lake
        shows several studies.
        """
        from saelake.extras import require

        require("compute", "dataset", "torch")
        from saelake.analysis.rows_dataset import LakeRows

        known = ("layer", "rows", "bos", "batch_rows", "dense", "shuffle", "seed")
        if unknown := [name for name in options if name not in known]:
            raise UserError(f"a data set has no option {arguments.shown(unknown[0])}: its options are {', '.join(known)}")
        study = only_study(self.lake, self.studies)
        with view_errors(self.connection):
            return LakeRows(self.lake, study, **options)

    def write(self, table: str, rows: Any, *, study: str | None = None, about: Mapping[str, Any] | None = None) -> RunRecord:
        """Stores rows of a table of the protocol as a run, with what made them.

        Afterwards the lake shows it, unless it was opened for another study: `connection` is a new one, and relations made before
        stay as they were.

        Rows that are written later to the same table and study take their place: plain names show the last ones, `all_runs` all.
        So what belongs together is written in one call.

        Args:
            rows: an Arrow table, a data frame, a list of dicts, or a dict of columns, without `run_id`. Ids that the table itself
                numbers may be any: the lake's take their place. So `ablation_id` may be left out of `ablations`; in
                `feature_sets` one `set_id` says which rows are a set.
            study: the study that they belong to; a new name makes a new study. By default the one that is shown.
            about: what made them, as JSON values, for the run's record.
        Raises UserError for what does not fit the protocol, and if no study is named and the lake shows none or several.
        """
        from saelake.warehouse.written_rows import write_rows

        study = None if study is None else arguments.text("study", study)
        told = arguments.json_values("about", about, "what made the rows, as {name: JSON value}")
        if study is None:
            if len(self.studies) != 1:
                raise UserError(
                    f"the lake {self.lake} shows {', '.join(self.studies) or 'no study yet'}: say which study: study=NAME"
                )
            (study,) = self.studies
        record = write_rows(self.lake, study, table, rows, {"written_by": "saelake.OpenLake.write", **told})
        self._show_again()
        return record

    def _renew(self) -> None:
        """Renews credentials for object storage, which may last only an hour."""
        self.lake.published.renew(self.connection)

    def _show_again(self) -> None:
        """Opens another connection, with views and studies as they are now; relations of the one before stay as they were."""
        self.connection, self.shown = _shown(self.lake, self.recipe)

    def tables(self) -> list[str]:
        """The names of the lake's tables."""
        found = self.connection.execute("select view_name from duckdb_views() where schema_name = 'main' and not internal")
        return sorted(name for (name,) in found.fetchall())

    def close(self) -> None:
        """Closes the connection."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open(path: str | Path, recipe: str | None = None) -> OpenLake:
    """The lake in a folder or, as text, at s3://bucket/prefix, restricted to one study if `recipe` names it; raises UserError."""
    if not isinstance(path, str | Path):
        raise UserError(f"the lake is {arguments.shown(path)}: give a folder or s3://bucket/prefix")
    recipe = None if recipe is None else arguments.text("recipe", recipe)
    lake = Lake.existing(path)
    return OpenLake(*_shown(lake, recipe), lake, recipe)


def _shown(lake: Lake, recipe: str | None) -> tuple[duckdb.DuckDBPyConnection, ShownRuns]:
    """A connection to the current runs, and these."""
    shown = current_runs(lake, recipe)
    return connect(lake, shown=shown), shown


def sparse(files: str | Path, **options: Any) -> "Sparse":
    """Activations in Parquet files, by a path or pattern, as a sparse matrix; options as in `OpenLake.sparse`.

    Rows and columns are those of the set's tables `prompts` and `saes`, beside its activations; if only some of the set's files
    are given, columns are those of the SAEs that fire in them. Where a table is not there, a warning says what rows or columns
    are. Raises as `OpenLake.sparse`, and UserError for files that hold no activations.
    """
    from saelake.queries.sparse import sparse_of_files

    return sparse_of_files(arguments.text("files", str(files) if isinstance(files, Path) else files), **options)
