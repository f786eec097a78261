"""The explorer in a real browser: by keyboard, at two widths, in light and dark, without its server."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.accessible import require_accessible, require_visible_focus
from tests.analysis.test_pages import server
from tests.meaning import CHROMIUM, FLAGS, chromium

WIDTHS = (1200, 390)
RUN = re.compile(r"minimal_[0-9a-f]+")
ENDLESS = "select count(*) from range(100000000000) a(i), range(1000) b(j) where hash(i + j) % 7 = 1"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def link(browser: Browser, planted_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The explorer of the planted study with its subject loaded; without a browser none is started."""
    lake = shutil.copytree(planted_lake, tmp_path_factory.mktemp("explorer") / "lake")
    with server("browse", "--live", "planted", "--port", "0", "--lake", str(lake)) as (links, _):
        yield links[0]


def require_form(page: Page, width: int, where: object) -> None:
    """A page that is no wider than it may be, under one heading, and that all can use."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width, (where, width)
    assert page.locator("h1").count() == 1, where
    require_accessible(page, (where, width))


def followed(page: Page, *names: str | re.Pattern[str]) -> Page:
    for name in names:
        page.get_by_role("link", name=name, exact=True).first.click()
    return page


def told_by(page: Page) -> list[str]:
    """What a page writes to its console, and the mistakes of its scripts, from now on."""
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    return told


def test_two_features_are_switched_off_in_three_clicks(link: str, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(link)
    followed(page, "Live").wait_for_selector("[data-edit='ablate 4:5']", state="attached")
    expect(page.locator("#unmodified [data-part=text]")).to_have_text("I cannot help .")
    page.locator("section", has_text="tell something").locator("[data-edit='ablate 4:5']").click()
    page.locator("section", has_text="tell something").locator("[data-edit='ablate 5:5']").click()
    page.locator("#edited", has_text="Sure , here it is .").wait_for()
    expect(page.locator("#edits")).to_have_value("ablate 4:5\nablate 5:5")
    expect(page.locator("#shell")).to_contain_text("--features 4:5,5:5")
    page.locator("[data-at]").last.click()
    expect(page.locator("[id^=at-]:visible")).to_have_count(1)


def test_the_console_by_keyboard_alone(link: str, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{link}/sql")
    page.keyboard.press("/")
    page.keyboard.type("select layer, count(*) as n from saes group by layer order by layer")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("table.rows")
    expect(page.locator("table.rows tbody tr")).to_have_count(6)
    expect(page.locator("#result .chart rect")).to_have_count(6)
    page.keyboard.press("Control+a")
    page.keyboard.type(ENDLESS)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#cancel:not([hidden])")
    page.keyboard.press("Escape")
    page.wait_for_selector(".problem", timeout=3_000)
    expect(page.get_by_role("alert")).to_contain_text("it was cancelled")


def test_two_browsers_at_once_do_not_wait_for_each_other(link: str, browser: Browser) -> None:
    with browser.browser_type.launch(executable_path=CHROMIUM, args=list(FLAGS)) as other:
        waiting, page = browser.new_page(), other.new_page()
        for asking in (waiting, page):
            asking.goto(f"{link}/sql")
        waiting.locator("#ask textarea").fill(ENDLESS)
        waiting.keyboard.press("Control+Enter")
        waiting.wait_for_selector("#cancel:not([hidden])")
        page.locator("#ask textarea").fill("select count(*) as n from prompts")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("table.rows")
        followed(page, "Features", "4:5").locator("h1", has_text="Feature 4:5").wait_for()
        page.goto(f"{link}/sql")
        page.locator("#ask textarea").fill(ENDLESS)
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#cancel:not([hidden])")
        waiting.locator("#cancel").click()
        waiting.wait_for_selector(".problem", timeout=3_000)
        expect(waiting.get_by_role("alert")).to_contain_text("it was cancelled")
        assert page.locator("#cancel").is_visible(), "what one cancels goes on in the other"
        page.locator("#cancel").click()
        page.wait_for_selector(".problem", timeout=3_000)


def test_every_page_fits_both_widths_in_light_and_dark(link: str, browser: Browser) -> None:
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
            problems = told_by(page)
            page.goto(link)
            for names in (
                (),
                ("4:5",),
                ("prompt",),
                ("Prompts",),
                ("Conditions",),
                ("minimal",),
                ("Runs",),
                (RUN,),
                ("SQL",),
                ("Live",),
            ):
                followed(page, *names)
                page.wait_for_load_state("networkidle")
                require_visible_focus(page, names)
                if names == ("SQL",):
                    page.get_by_role("button", name="Ask").click()
                    page.wait_for_selector("table.rows")
                require_form(page, width, names)
            assert problems == []


def test_a_page_says_when_its_server_is_gone(browser: Browser, planted_lake: Path) -> None:
    with server("browse", "--port", "0", "--lake", str(planted_lake)) as (links, process):
        page = browser.new_page()
        page.goto(f"{links[0]}/sql")
        process.kill()
        process.wait()
        page.get_by_role("button", name="Ask").click()
        page.locator("#result", has_text="is it still running?").wait_for()
