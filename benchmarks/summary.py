"""Every ratio line of docs/benchmarks.md: what was measured, its target, and whether it is reached. Ends `make bench`.

python -m benchmarks.summary
"""

import operator
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.harness import DOCS

SECTION = re.compile(r"<!-- (\S+): begin -->\n.*?\n`([^`]+)`.*?```text\n(\d{4}-\d\d-\d\d).*?<!-- \1: end -->", re.DOTALL)
RATIO = re.compile(r"^ratio (\S+) (\S+) target (?:none|(<=|>=) (\S+))$", re.MULTILINE)
REACHES = {"<=": operator.le, ">=": operator.ge}


class Line(NamedTuple):
    """One claim, as it was measured last."""

    command: str
    day: str
    name: str
    value: float
    target: str
    """`>= 10`, or `none`"""
    reached: str
    """yes, no, or - where nothing is claimed"""


def lines(text: str) -> Iterator[Line]:
    """The claims of a page of benchmarks, section by section."""
    for section in SECTION.finditer(text):
        for name, value, sign, bound in RATIO.findall(section[0]):
            reached = "-" if not sign else "yes" if REACHES[sign](float(value), float(bound)) else "no"
            yield Line(section[2], section[3], name, float(value), f"{sign} {bound}" if sign else "none", reached)


def main() -> None:
    found = list(lines(DOCS.read_text(encoding="utf-8")))
    width = max(len(line.name) for line in found)
    for line in sorted(found, key=lambda line: line.reached == "no"):
        where = f"{line.command}, {line.day}"
        print(f"{line.reached:<4} {line.name:<{width}} {line.value:>10.3f}  target {line.target:<8} {where}")
    counts = Counter(line.reached for line in found)
    print(f"{counts['yes']} targets reached, {counts['no']} not (last above), {counts['-']} figures without one")


if __name__ == "__main__":
    sys.exit(main())
