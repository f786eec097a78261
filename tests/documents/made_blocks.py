"""The blocks of a page that are made from code, between the marks of their names; what stands around them is written by hand."""

from collections.abc import Mapping, Sequence


def with_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """A page's text with each block in the place of what stands between its marks."""
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, opened, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        assert opened, f"the page has no mark {begin}"
        assert closed, f"the page has no mark {end}"
        text = f"{before}{begin}\n{block}\n{end}{after}"
    return text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
