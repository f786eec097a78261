"""The model of a study by its name, as its runs know it: what a source that names another one is compared with."""

from typing import TYPE_CHECKING

from saelake.formats.joined import Joined
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError

if TYPE_CHECKING:
    from saelake.lake import OpenLake

TOLD = "select distinct about ->> '$.model.id' as name from runs where about ->> '$.model.id' is not null order by name"


def model_of(opened: "OpenLake") -> str:
    """The model's name; the study's, where that is a folder."""
    told = opened.sql(TOLD).fetchone()
    return str(told[0]) if told else opened.studies[0]


def check_model(name: str, joined: Joined, where: str) -> None:
    """Raises UserError for a source that names another model than the study's runs do; names on the hub are compared without
    their organisation, which mirrors change."""
    with connect(joined.lake, joined.name) as con:
        known = [told for (told,) in con.execute(TOLD).fetchall()]
    if name and known and _bare(name) not in map(_bare, known) and name != joined.name:
        raise UserError(
            f"{where}: it is of the model {name}, and the study {joined.name} is of {known[0]}: it is another model's"
        )


def _bare(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()
