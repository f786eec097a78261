"""The local web server of annotation studies and of the explorer: who may ask, and what every answer carries.

Nothing is open: each page lies below a secret in its link. A post must come from a page of this server. No page runs or loads
anything that is not a file of `pages/`, and templates escape all text that they show.
"""

import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException as NotServed

from saelake.warehouse.errors import UserError

PAGES = Path(__file__).parent / "pages"
STATIC = {"page.css": "text/css"} | dict.fromkeys(("study.js", "explorer.js", "live.js"), "text/javascript")
MAX_POST = 16 * 2**10
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not no-referrer: browsers would then post without saying from where
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Next = Callable[[Request], Awaitable[Response]]


def as_sentence(text: str) -> str:
    """What a mistake says, which begins in lower case and ends without a full stop, as a page shows it; names stay."""
    is_name = "_" in text.partition(" ")[0]
    return (text if is_name else text[:1].upper() + text[1:]) + ("" if text.endswith((".", "?")) else ".")


def linked(asked: Mapping[str, object], **changes: object) -> str:
    """The query string of an address: what was asked for, with changes; what says nothing is left out."""
    told = {name: value for name, value in {**asked, **changes}.items() if value not in ("", None)}
    return f"?{urlencode(told)}" if told else ""


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:z.{digits}f}"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after each underscore."""
    return Markup(str(escape(name)).replace("_", "_<wbr>"))


def _whole(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


_environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
_environment.filters |= {"sentence": as_sentence, "figure": _figure, "short": _short, "whole": _whole, "breakable": _breakable}
_environment.globals["linked"] = linked


def render(template: str, status: int = 200, **values: object) -> HTMLResponse:
    """A page from its template; every value is escaped."""
    return HTMLResponse(_environment.get_template(template).render(**values), status)


def new_app(hosts: Sequence[str]) -> FastAPI:
    """An application without pages yet.

    Args:
        hosts: names that a browser may call the server by; any if empty. Else another site could point its own name here and read
            the answers.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for page in PAGES.glob("*.html"):  # compiled now, so that no request waits for it
        _environment.get_template(page.name)

    @app.middleware("http")
    async def guarded(request: Request, call_next: Next) -> Response:
        refusal = _refusal(request, hosts)
        response = refusal or await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(NotServed)  # what FastAPI raises is one too
    async def refused(request: Request, error: NotServed) -> Response:
        return render("message.html", error.status_code, title="Not found", text=str(error.detail))

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> Response:
        return render("message.html", 409, title="That did not work", text=str(error))

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "there is no such file")
        return FileResponse(PAGES / name, media_type=STATIC[name])

    return app


def _refusal(request: Request, hosts: Sequence[str]) -> Response | None:
    """Why a request is not answered, if it is not."""
    host = request.headers.get("host", "")
    if hosts and _hostname(host) not in hosts:
        return Response("unknown host", 421)
    if request.method in ("GET", "HEAD"):
        return None
    origin = request.headers.get("origin")
    is_own = origin in (None, f"http://{host}", f"https://{host}")  # https: behind a proxy
    if not is_own or request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return Response("posts come from this server's pages only", 403)
    return None


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def form_of(request: Request) -> dict[str, list[str]]:
    """The fields of a posted form; 413 if it is too large to be one."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_POST:
            raise HTTPException(413, "that is too much for a form")
    return parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)


def check_secret(own: str, given: str) -> None:
    """404, as for a page that does not exist, unless the secret in a link is right."""
    if not secrets.compare_digest(own.encode(), given.encode()):
        raise HTTPException(404, "there is no such page: use the whole link that the server printed")


def listen(host: str, port: int) -> socket.socket:
    """A socket on which a server can listen; raises UserError if the address is taken or is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # a link works as soon as it is printed
    except (OSError, OverflowError) as error:
        listening.close()
        raise UserError(f"cannot listen on {host}, port {port} ({error}): give another --port or --host") from error
    return listening


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answers until it is interrupted. Requests are not logged: their addresses hold the secrets."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])
