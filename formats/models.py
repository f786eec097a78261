"""The model of a study by its name, as its runs know it: what a source that names another one is compared with."""

from typing import TYPE_CHECKING

from saelake.formats.joined import Joined
from saelake.formats.registry import Asked
from saelake.ingest.model_shape import KNOWN, ModelShape
from saelake.warehouse.errors import UserError

if TYPE_CHECKING:
    from saelake.lake import OpenLake

TOLD = "select distinct about ->> '$.model.id' as name from runs where about ->> '$.model.id' is not null order by name"
HASHED = "select distinct config ->> '$.model_hash' as hash from runs where config ->> '$.model_hash' is not null order by hash"


def model_of(opened: "OpenLake") -> str:
    """The model's name; the study's, where that is a folder."""
    told = opened.sql(TOLD).fetchall()
    return str(told[0][0]) if told else opened.studies[0]


def model_hashes(joined: Joined) -> list[str]:
    """The hashes of the study's model: files of a folder, or a commit of the hub."""
    return [told for (told,) in joined.ask(HASHED)]


def hashes_of(opened: "OpenLake") -> list[str]:
    """`model_hashes` of an open study."""
    return [told for (told,) in opened.sql(HASHED).fetchall()]


def model_names(joined: Joined) -> list[str]:
    """What the runs of a study call its model: nothing where it is a folder, or the study is not there yet."""
    return [told for (told,) in joined.ask(TOLD)] if joined.is_there else []


def known_shape(joined: Joined) -> ModelShape | None:
    """The shape of the study's model, where its name is a known one."""
    return next((KNOWN[name] for name in model_names(joined) if name in KNOWN), None)


def check_model(name: str, joined: Joined, asked: Asked, where: str) -> None:
    """Raises UserError for a source that names another model than the study's runs do; names on the hub are compared without
    their organisation, which mirrors change. A person may say that the source's name is the study's model by another name.
    """
    known = model_names(joined)
    if name and known and name not in (joined.name, asked.model) and _bare(name) not in map(_bare, known):
        raise UserError(
            f"{where}: it is of the model {name[:80]}, and the study {joined.name} is of {known[0]}: "
            "if that is the same model by another name, say so with --model"
        )


def _bare(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()
