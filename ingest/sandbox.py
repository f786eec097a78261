"""The process in which chat templates are rendered, within limits of time and memory: a template is a stranger's program.

Started by ingest/rendering.py as a script; it imports nothing of saelake, and ends when its standard input does. A request is a
line of JSON, {"template": text, "contexts": [variables, ...], "seconds": s}; its reply a line with [text, error] a context, one
of them null. The environment is that of transformers, without what differs from one rendering to the next: random, lipsum, the
clock.
"""

import json
import resource
import signal
import sys
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 250 * 2**20
"""Bytes of addresses, of which Python and Jinja take a fifth."""
MAX_LETTERS, MAX_ALL = 2**22, 2**25
"""Letters that one prompt, and all of a request, may become."""


class Generation(Extension):
    """`{% generation %}`, with which templates mark answers for training, shows what is in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@cache
def compiled(text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    del environment.filters["random"], environment.globals["lipsum"]
    return environment.from_string(text)


def filled_in(text: str, context: dict[str, Any]) -> str:
    clock = datetime.fromisoformat(context.pop("clock"))
    rendered = compiled(text).render(strftime_now=clock.strftime, **context)
    if len(rendered) > MAX_LETTERS:
        raise jinja2.TemplateError(f"it makes one prompt longer than {MAX_LETTERS:,} letters")
    return rendered


def answer(request: dict[str, Any]) -> list[list[str | None]]:
    replies: list[list[str | None]] = []
    total = 0
    for context in request["contexts"]:
        try:
            text = filled_in(request["template"], context)
            total += len(text)
            if total > MAX_ALL:
                raise jinja2.TemplateError(f"it makes the prompts longer than {MAX_ALL:,} letters together")
            replies.append([text, None])
        except jinja2.TemplateError as error:
            replies.append([None, str(error) or type(error).__name__])
        except MemoryError:
            replies.append([None, f"it needs more than {MEMORY // 2**20} MB of memory"])
        except RecursionError:
            replies.append([None, "it calls itself without end, or is nested too deep"])
        except Exception as error:  # whatever Python does in a template
            replies.append([None, f"{type(error).__name__}: {error}"[:500]])
    return replies


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        request = json.loads(line)
        # Its signal ends the process, also in the middle of a single operation that never returns.
        # Processor time, so that a busy machine ends no ordinary template; three times as long at most by the clock.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        signal.setitimer(signal.ITIMER_REAL, 3 * request["seconds"])
        reply = json.dumps(answer(request))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
