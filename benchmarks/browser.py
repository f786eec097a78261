"""make bench-browser: how long the explorer takes to answer, over HTTP, on a large lake.

    python -m benchmarks.browser --cache ~/.cache/saelake-bench

A synthetic lake of 60M activations, 14 SAEs of 65,536 features; cards of the features that fire most, and of others at random,
each asked for once, so that nothing of it was read before; then its lists, and how soon a statement of its console is cancelled.
The same cards as static pages of the shared lake, in Chromium: requests, bytes and time of each, from a host on loopback. With
--live, a lake of the embedded study, how soon its live page answers under edits. On a machine that others use, the processor time
tells more.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import saelake
from benchmarks.harness import Report
from saelake.analysis.static_pages.write import write_pages
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.share import Choice, share
from saelake.warehouse.synth import Shape, synthesize
from tests.meaning import CHROMIUM, chromium
from tests.static_host import serving

ROWS = 60_000_000
FREQUENT = 20
OTHERS = 200
STATIC = 40
"""Cards of the static pages, of each kind at most."""
PAGES = (
    "",
    "?layer=3",
    "?feature_id=17",
    "?words=weapon",
    "?population=critical",
    "?order=auroc",
    "/prompts",
    "/conditions",
    "/runs",
)
LIVE_STUDY, LIVE_EDITS = "organism", "ablate 5:177, 4:256"
LIVE_PROMPTS, LIVE_TOKENS = 30, 16
ENDLESS = "select count(*) from range(100000000000) a(i), range(1000) b(j) where hash(i + j) % 7 = 1"


def processor_seconds(pid: int) -> float:
    """What a process has taken of the processor so far; NaN where the system does not tell."""
    told = Path(f"/proc/{pid}/stat")
    if not told.exists():
        return float("nan")
    user, system = told.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def explorer(*options: str) -> Iterator[tuple[str, int]]:
    """The explorer in a process of its own: its link, and the process."""
    command = [sys.executable, "-m", "saelake.cli", "browse", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            printed = re.search(r"http://\S+", server.stdout.readline())
            assert printed is not None, "the server printed no link"
            yield printed[0], server.pid
        finally:
            server.terminate()


def live_answers(report: Report, lake: Path) -> None:
    """How soon the live page of the embedded study says P(target) under edits, and the whole answer, beside the unmodified."""
    with saelake.open(lake, LIVE_STUDY) as opened:
        prompts = [text for (text,) in opened.sql("select text from prompts order by prompt_id").fetchall()[:LIVE_PROMPTS]]
    firsts, wholes = [], []
    with explorer("--live", LIVE_STUDY, "--lake", str(lake)) as (link, pid):
        before = processor_seconds(pid)
        for prompt in prompts:
            form = {"prompt": prompt, "edits": LIVE_EDITS, "max_new_tokens": str(LIVE_TOKENS)}
            start, first = time.perf_counter(), float("nan")
            with urlopen(f"{link}/live/answer", urlencode(form).encode()) as answer:
                for line in answer:
                    told = json.loads(line)
                    assert "problem" not in told, told
                    if told.get("side") == "edited" and "p_target" in told:
                        first = time.perf_counter() - start
            firsts.append(1e3 * first)
            wholes.append(1e3 * (time.perf_counter() - start))
        taken = 1e3 * (processor_seconds(pid) - before) / len(prompts)
    report.line(f"  live, {LIVE_STUDY}: {LIVE_EDITS}; up to {LIVE_TOKENS} tokens of two answers, {len(prompts)} prompts")
    for what, times in (("P(target)", firsts), ("whole answer", wholes)):
        report.line(f"  live, {what:<14} median {statistics.median(times):6.1f} ms, slowest {max(times):6.1f} ms")
    report.line(f"  live, processor time {taken:.1f} ms an answer in the mean")
    report.ratio("live_answer_in_300_ms", statistics.median(wholes) / 300, "<= 1")


def milliseconds(urls: Sequence[str]) -> list[float]:
    """How long each page takes, asked for one after another."""
    taken = []
    for url in urls:
        start = time.perf_counter()
        with urlopen(url) as response:
            response.read()
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


def cancelled(url: str) -> float:
    """How long a statement of the console goes on after it is cancelled, in milliseconds."""
    ticket = {"statement": ENDLESS, "ticket": "bench"}

    def post(path: str) -> None:
        with suppress(HTTPError), urlopen(path, urlencode(ticket).encode()) as response:
            response.read()

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, url)
        time.sleep(2)
        start = time.perf_counter()
        post(f"{url}/cancel")
        asked.result()
        return 1e3 * (time.perf_counter() - start)


def features(lake: Lake) -> dict[str, list[tuple[int, int]]]:
    """The features whose cards are asked for, as (layer, feature_id)."""
    with connect(lake) as con:
        frequent = con.sql(f"select layer, feature_id from features order by n_tokens desc limit {FREQUENT}").fetchall()
        lot = "md5(layer || '/' || feature_id)"
        others = con.sql(f"select layer, feature_id from features order by {lot} limit {OTHERS}").fetchall()
    return {"most frequent": frequent, "any": others}


def static_cards(report: Report, lake: Lake) -> None:
    """What a card of the static pages asks for after the page, with nothing in the browser's cache."""
    if CHROMIUM is None:
        report.line("  static pages: not tried, there is no Chromium here")
        return
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        folder = Path(name) / "set"
        start = time.perf_counter()
        share(lake, folder, Choice(by_ranges=True), then=partial(write_pages, study="synth"))
        taken = time.perf_counter() - start
        sizes = {part: sum(p.stat().st_size for p in (folder / part).rglob("*.*")) for part in ("data", "site")}
        report.line(f"  shared with pages in {taken:.0f} s: {sizes['data']:,} bytes of tables, {sizes['site']:,} of pages")
        host, browser = opened.enter_context(serving(folder)), opened.enter_context(chromium())
        for kind, chosen in features(lake).items():
            told = []
            for layer, feature_id in chosen[:STATIC]:
                page = browser.new_context().new_page()
                page.goto(host.url)
                page.wait_for_selector("main:not([aria-busy]) tbody")
                host.forget()
                start = time.perf_counter()
                page.evaluate("hash => { location.hash = hash }", f"#/{layer}/{feature_id}")
                page.wait_for_function(SHOWN, arg=f"Feature {layer}:{feature_id} ")
                told.append((len(host.asked), host.n_bytes, 1e3 * (time.perf_counter() - start)))
                page.context.close()
            requests, n_bytes, times = zip(*told, strict=True)
            most = f"{max(requests)} requests and {max(n_bytes):,} bytes at most"
            median = f"{statistics.median(n_bytes):,.0f} bytes, {statistics.median(times):.0f} ms"
            report.line(f"  static card, {kind:<14} {most}; median {median}, {len(told)} cards")
            named = kind.replace(" ", "_")
            report.ratio(f"static_card_{named}_requests", max(requests), "<= 9")
            report.ratio(f"static_card_{named}_in_1_MiB", max(n_bytes) / 2**20, "<= 1")


SHOWN = "title => document.title.startsWith(title) && !document.querySelector('main[aria-busy]')"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "saelake-bench")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--live", type=Path, help="a lake of the embedded study, as `saelake analyze organism` makes it")
    given = parser.parse_args()
    report = Report("browser", "The explorer", ["duckdb", "fastapi", "uvicorn"])
    lake = Lake.create(given.cache / "browser-lake")
    record = synthesize(lake, Shape.of_rows(given.rows))
    report.line(f"{record.n_rows('activations'):,} activations, {record.n_rows('features'):,} features")
    with explorer("--recipe", "synth", "--lake", str(lake.root)) as (link, pid):
        for name, chosen in features(lake).items():
            before = processor_seconds(pid)
            taken = milliseconds([f"{link}/{layer}/{feature_id}" for layer, feature_id in chosen])
            own = 1e3 * (processor_seconds(pid) - before) / len(taken)
            times = f"median {statistics.median(taken):6.1f} ms, slowest {max(taken):6.1f} ms"
            report.line(f"  card, {name:<14} {times}, {len(taken)} cards; processor time {own:.1f} ms in the mean")
            report.ratio(f"slowest_card_{name.replace(' ', '_')}_in_300_ms", max(taken) / 300, "<= 1")
        taken = milliseconds([link + asked for asked in PAGES])
        report.line(f"  lists                median {statistics.median(taken):6.1f} ms, slowest {max(taken):6.1f} ms")
        stopped = cancelled(f"{link}/sql")
        report.line(f"  a statement without an end is stopped {stopped:.0f} ms after Cancel")
        report.ratio("cancelled_in_1_s", stopped / 1000, "<= 1")
    static_cards(report, lake)
    if given.live is None:
        report.not_run("live answers", "--live names no lake of the embedded study")
    else:
        live_answers(report, given.live)
    report.keep()


if __name__ == "__main__":
    main()
