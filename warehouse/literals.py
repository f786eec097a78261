"""Values as SQL, where a statement takes no parameters."""


def literal(text: str) -> str:
    """A safe SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
