"""Real processes for tests that kill them, starve them or let them race."""

import subprocess
import sys

from tests.conftest import ROOT

PREAMBLE = """
import os, resource, sys, time
from pathlib import Path
from tests.warehouse import toys
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
"""


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """A Python process that runs `code` after the usual imports, with `arguments` in sys.argv."""
    command = [sys.executable, "-c", PREAMBLE + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> str:
    """Its standard output, once it has ended well."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def run(code: str, *arguments: object) -> str:
    return finish(start(code, *arguments))
