"""The pages of annotation studies and of the explorer, over HTTP and in a real browser."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, Page, expect

import saelake
from saelake.analysis.meaning import annotation_study as studies
from saelake.analysis.meaning.annotation_study import AnnotationStudy, Sampling
from saelake.warehouse.lake import Lake
from tests import lakes
from tests.accessible import require_accessible
from tests.conftest import ROOT
from tests.meaning import build_meaning_lake, chromium

SCRIPT = "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
PEOPLE = ("ann", "bob")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The hand-made lake with a script in all that people or models wrote: prompts, tokens, categories, answers, labels."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lakes, "WORDS", (SCRIPT, "b"))
        patched.setattr(lakes, "HOSTILE", SCRIPT)
        patched.setattr(lakes, "TEXTS", tuple(f"{SCRIPT}{n}" for n in range(6)))
        patched.setattr(lakes, "CATEGORIES", (SCRIPT, SCRIPT, "fraud", None, "food", None))
        return build_meaning_lake(
            tmp_path_factory.mktemp("pages") / "lake", [(0, 1, f"about {SCRIPT} things"), (1, 0, "periods")]
        )


@pytest.fixture
def lake(built: Lake, tmp_path: Path) -> Lake:
    return Lake(Path(shutil.copytree(built.root, tmp_path / "lake")))


@contextmanager
def server(*arguments: str) -> Iterator[tuple[list[str], "subprocess.Popen[str]"]]:
    """A command that serves pages in a process of its own: the links that it prints, and the process."""
    command = [sys.executable, "-m", "saelake.cli", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        n_links = 1 if arguments[0] == "browse" else len(PEOPLE)
        links = [match[0] for _ in range(n_links) if (match := re.search(r"http://\S+", process.stdout.readline()))]
        try:
            yield links, process
        finally:
            process.kill()


def annotate(lake: Lake, port: str = "0") -> AbstractContextManager[tuple[list[str], "subprocess.Popen[str]"]]:
    return server("annotate", "pilot", "--port", port, "--lake", str(lake.root))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def create(lake: Lake) -> AnnotationStudy:
    return studies.create(lake, "small", "pilot", PEOPLE, Sampling("candidates", per_group=5))


def status(url: str, data: bytes | None = None, **headers: str) -> int:
    """The status of an answer."""
    try:
        with urlopen(Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})) as response:
            return int(response.status)
    except HTTPError as error:
        error.close()
        return error.code


def test_two_people_annotate_a_whole_study_and_nothing_acknowledged_is_lost(lake: Lake, browser: Browser) -> None:
    """They take turns, each page is reloaded once, and the server is killed in the middle and started again."""
    study = create(lake)
    acknowledged: dict[str, dict[int, tuple[str, ...]]] = {person: {} for person in PEOPLE}

    def turn(page: Page, person: str, link: str, keys: str, chosen: tuple[str, ...]) -> None:
        page.goto(link)
        place = int(page.url.rsplit("/", 1)[1])
        page.reload()
        for key in keys:
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile(rf"/(done|{place + 1})$"))
        acknowledged[person][study.order(person)[place - 1]] = chosen

    answers = [("1", (study.categories[0],)), ("12", study.categories), ("120", ("None",)), ("02", (study.categories[1],))]
    pages = {person: browser.new_context().new_page() for person in PEOPLE}
    with annotate(lake) as (links, process):
        port = re.search(r":(\d+)/", links[0])
        assert port is not None
        for person, link in zip(PEOPLE, links, strict=True):
            turn(pages[person], person, link, *answers[0])
            turn(pages[person], person, link, *answers[1])
        process.kill()
    with annotate(lake, port[1]) as (again, _):
        assert again == links, "links stay good"
        for n in range(2, len(study.items)):
            for person, link in zip(PEOPLE, links, strict=True):
                turn(pages[person], person, link, *answers[n % 4])
        for page in pages.values():
            expect(page.locator("h1")).to_have_text(f"All {len(study.items)} features are answered.")
    assert studies.state(lake, study).answers == acknowledged
    record = studies.close(lake, study)
    assert record.n_rows("annotations") == len(PEOPLE) * len(study.items) * 3


def test_a_page_by_mouse_with_undo_and_its_mistakes(lake: Lake, browser: Browser) -> None:
    study = create(lake)
    with annotate(lake) as (links, _):
        context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
        page = context.new_page()
        page.goto(links[0])
        page.get_by_role("button", name="Save and next").click()
        expect(page.get_by_role("alert")).to_contain_text("Choose at least one")
        page.get_by_label("fraud").check()
        page.get_by_label("None of these").check()
        page.get_by_role("button", name="Save and next").click()
        expect(page.get_by_role("alert")).to_contain_text("not both")
        expect(page.get_by_label("fraud"), "what was chosen is still there").to_be_checked()
        assert studies.state(lake, study).answers["ann"] == {}
        page.get_by_label("None of these").uncheck()
        page.get_by_role("button", name="Save and next").click()
        expect(page).to_have_url(re.compile("/2$"))
        assert studies.state(lake, study).answers["ann"] == {study.order("ann")[0]: ("fraud",)}
        page.get_by_role("button", name="Undo last").click()
        expect(page).to_have_url(re.compile("/1$"))
        assert studies.state(lake, study).answers["ann"] == {}
        page.get_by_role("link", name="Skip →").click()
        expect(page).to_have_url(re.compile("/2$"))


def test_what_people_and_models_wrote_is_inert_and_nothing_sticks_out(lake: Lake, browser: Browser) -> None:
    create(lake)
    with annotate(lake) as (links, _), server("browse", "--port", "0", "--lake", str(lake.root)) as (found, _):
        features = [f"{found[0]}/{layer}/{feature}" for layer in (0, 1) for feature in range(4)]
        searches = [found[0], f"{found[0]}?words=%3Cscript%3E", f"{found[0]}?layer=%3Cscript%3E", f"{found[0]}?order=auroc"]
        with saelake.open(lake.root) as opened:
            ids = [prompt_id for (prompt_id,) in opened.sql("select prompt_id from prompts").fetchall()]
            runs = [run_id for (run_id,) in opened.sql("select run_id from runs").fetchall()]
            conditions = [name for (name,) in opened.sql("select distinct condition from ablations").fetchall()]
        searches += [f"{found[0]}/{part}" for part in ("prompts", "prompts?words=%3Cscript%3E", "conditions", "runs")]
        searches += [f"{found[0]}/prompts/{prompt_id}?pos=1&feature=0:1" for prompt_id in ids]
        searches += [f"{found[0]}/conditions/{name}" for name in conditions] + [f"{found[0]}/runs/{run_id}" for run_id in runs]
        requested: list[str] = []
        for width in (1280, 390):
            page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
            page.on("request", lambda request: requested.append(request.url))
            seen = ""
            for url in [f"{links[0]}/{n}" for n in (1, 2, 3)] + features + searches:
                page.goto(url)
                assert page.title() != "broken"
                assert page.locator("script:not([src])").count() == 0
                assert page.locator("img").count() == 0
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                require_accessible(page, url)
                seen += page.locator("main").inner_text()
            assert SCRIPT in seen, "shown as text"
        assert all(re.match(r"http://127\.0\.0\.1:\d+/(a|b|static|favicon)", url) for url in requested)
        assert not [url for url in requested if url.endswith("/x")]


def test_only_the_secret_opens_a_page_and_only_its_own_pages_may_post(lake: Lake) -> None:
    study = create(lake)
    with annotate(lake) as (links, _):
        base, answer = links[0].split("/a/")[0], b"category=fraud"
        own = {"Origin": base, "Sec_Fetch_Site": "same-origin"}
        assert status(links[0]) == 200
        assert [
            status(f"{base}{path}")
            for path in ("/", "/a/", "/a/wrong/1", f"{links[0][len(base) :]}x/1", "/docs", "/openapi.json")
        ] == [404] * 6
        assert [status(f"{base}/static/{name}") for name in ("page.css", "item.html", "..%2fserver.py")] == [200, 404, 404]
        assert [status(f"{links[0]}/{place}") for place in ("0", "99", "x")] == [404, 404, 422]
        assert status(f"{links[0]}/1", answer, Origin="http://evil.example") == 403
        assert status(f"{links[0]}/1", answer, Origin="null") == 403
        assert status(f"{links[0]}/1", answer, Sec_Fetch_Site="cross-site") == 403
        assert status(links[0], Host="evil.example") == 421
        assert status(f"{links[0]}/1", b"category=" + b"x" * 100_000, **own) == 413
        assert status(f"{links[0]}/1", b"category=elsewhere", **own) == 422
        assert studies.state(lake, study).answers == {"ann": {}, "bob": {}}
        assert status(f"{links[0]}/1", answer, **own) == 200
        assert len(studies.state(lake, study).answers["ann"]) == 1
        with urlopen(links[0]) as response:
            policy = response.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            assert response.headers["Referrer-Policy"] == "same-origin"
            assert response.headers["Cache-Control"] == "no-store"
        studies.close(lake, study, unfinished=True)
        assert status(f"{links[0]}/2", answer, **own) == 422
        assert status(f"{links[0]}/undo", b"", **own) == 409


def test_the_list_of_features_is_served_with_its_columns(lake: Lake) -> None:
    with server("browse", "--port", "0", "--lake", str(lake.root)) as (links, _), urlopen(links[0]) as response:
        rows = response.read().decode().count('<th scope="row">')
    assert rows == 8


def test_a_feature_s_card_tells_what_the_lake_knows(lake: Lake, browser: Browser) -> None:
    with server("browse", "--port", "0", "--lake", str(lake.root)) as (links, _):
        page = browser.new_page()
        page.goto(links[0])
        expect(page.locator("tbody tr")).to_have_count(8)
        page.get_by_label("Layer").select_option("0")
        page.get_by_label("Found by").select_option("candidates")
        page.get_by_role("button", name="Search").click()
        expect(page.locator("tbody th")).to_have_text(["0:1", "0:2"])
        page.get_by_role("link", name="0:1").click()
        for part in ("3 prompts, 4 tokens", "2.250", "3.000", "2 of 2", "critical"):
            expect(page.locator("main")).to_contain_text(part)
        expect(page.locator(".chart.values rect")).to_have_count(20)
        expect(page.locator(".chart rect.marked")).to_have_count(1)
        assert status(f"{links[0]}/0/4") == 404
        assert status(f"{links[0]}/7/1") == 404
        page.goto(f"{links[0]}?feature_id=x")
        expect(page.get_by_role("alert")).to_contain_text("Number is the number of a feature, not 'x'")


def test_cards_of_the_organism_link_what_wakes_and_what_is_woken(organism_lake: Path, browser: Browser) -> None:
    with saelake.open(organism_lake) as lake:
        edges = lake.query("waking_edges").filter("source_layer is not null and layer is not null")
        ids = edges.project("source_layer, source_feature_id, layer, feature_id").fetchall()[0]
    source, woken = f"{ids[0]}:{ids[1]}", f"{ids[2]}:{ids[3]}"
    with server("browse", "--port", "0", "--lake", str(organism_lake)) as (links, _):
        page = browser.new_page()
        page.goto(f"{links[0]}/{ids[0]}/{ids[1]}")
        expect(page.locator("section", has_text="Found by the search as").locator("tbody tr")).not_to_have_count(0)
        page.locator("section", has_text="Ablating it wakes").get_by_role("link", name=woken, exact=True).click()
        expect(page).to_have_url(f"{links[0]}/{ids[2]}/{ids[3]}")
        back = page.locator("section", has_text="It is woken by ablating").get_by_role("link", name=source, exact=True)
        expect(back).to_have_count(1)
