"""What a study calls its prompts: which label it takes for the target, which for the control."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

ROLES = "select label_role, min(label) from prompts where label_role in ('target', 'control') group by label_role"


def labels(con: "duckdb.DuckDBPyConnection") -> dict[str, str]:
    """target and control -> the label of prompts that a study takes for it; absent where no prompt has one."""
    return dict(con.execute(ROLES).fetchall())
