"""The static pages of a shared set in a real browser, from a host that counts what it sends: numbers, requests, hostile texts."""

import json
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import duckdb
import pytest
from playwright.sync_api import Browser, Page

from saelake.analysis.served.cards import Sample, quantiles_of, samples_of, visible
from saelake.analysis.served.server import _figure, _short
from saelake.analysis.static_pages import tables
from saelake.analysis.static_pages.write import write_pages
from saelake.ingest.job import ingest
from saelake.ingest.recipe import load_recipe
from saelake.queries.rows import rows
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.share import Choice, share
from tests import lakes
from tests.accessible import require_visible_focus
from tests.analysis.test_several_saes import write_twins
from tests.explorer.test_in_browser import WIDTHS, require_form, told_by
from tests.meaning import build_meaning_lake, chromium
from tests.static_host import Host, serving

SCRIPT = "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
MOST_REQUESTS, MOST_BYTES = 9, (1 << 20) - 1
"""Of a card, after the page."""
EDGES = (
    ("Stands in for it when it is ablated", "feature_backups", "backed"),
    ("It stands in for", "feature_backups", "backs"),
    ("Ablating it wakes", "neighbours", "wakes"),
    ("It is woken by ablating", "neighbours", "woken"),
    ("Nearest decoder rows", "nearest_rows", None),
)
"""Sections of a card that lead to other features, and the rows of which question they show."""
PLACES = ("#/", "#/?order=auroc", "#/4/5", "#/conditions", "#/about")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def pages_of(lake: Path, study: str, folder: Path, tables: tuple[str, ...] = ()) -> Path:
    share(Lake.existing(lake), folder, Choice(by_ranges=True, tables=tables), then=partial(write_pages, study=study))
    return folder


@pytest.fixture(scope="module")
def folder(browser: Browser, planted_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pages_of(planted_lake, "planted", tmp_path_factory.mktemp("static") / "set")


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[Host]:
    with serving(folder) as host:
        yield host


def asked_by(page: Page) -> list[str]:
    """What a page asks for, from now on."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    return asked


def shown(page: Page, title: str) -> Page:
    """The page, when it shows what is called so."""
    page.wait_for_function("title => document.title.startsWith(title) && !document.querySelector('main[aria-busy]')", arg=title)
    return page


def card(page: Page, layer: int, feature_id: int) -> Page:
    page.evaluate("hash => { location.hash = hash }", f"#/{layer}/{feature_id}")
    return shown(page, f"Feature {layer}:{feature_id} of ")


def require_equal(page: Page, con: duckdb.DuckDBPyConnection, layer: int | str, feature_id: int) -> None:
    """A card, of a layer or SAE, shows the numbers and texts that the questions of the explorer answer."""
    key = (layer, feature_id)
    bins = [f"{b['low']:.2f} to {b['high']:.2f}: {b['n_tokens']:,} tokens" for b in rows(con, "histogram", features=[key])]
    assert page.locator("svg.values title").all_text_contents() == bins, key
    require_samples(page, "Where it fires most", next(iter(samples_of(con, [key]).values()), []))
    require_samples(page, "From weak to strong", [sample for _, sample in quantiles_of(con, key)])
    logits = [(visible(r["promoted"]), f"{r['promoted_logit']:z.2f}") for r in rows(con, "logits", features=[key])]
    lines = (
        page.locator("section", has_text="Tokens that it writes")
        .locator("tbody tr")
        .evaluate_all("all => all.map(one => [...one.children].slice(0, 2).map(cell => cell.textContent))")
    )
    assert [tuple(line) for line in lines] == logits, key
    which = f"from features where feature_id = {feature_id} and '{layer}' in (layer::varchar, sae_id)"
    ((in_layer, sae_id),) = con.sql(f"select layer, sae_id {which}").fetchall()
    asked = {"layer": in_layer, "feature_id": feature_id, "sae_id": sae_id}
    (facts,) = rows(con, "feature_facts", **asked)
    densities = rows(con, "densities", sae_id=sae_id, feature_id=feature_id)
    bars = [f"10^{b['low']:.2f} to 10^{b['high']:.2f} of the tokens: {b['n_features']:,} features" for b in densities]
    here = [bar for bar, one in zip(bars, densities, strict=True) if one["is_here"]]
    assert page.locator("svg.densities title").all_text_contents() == (bars if here else []), key
    assert page.locator("svg.densities .marked title").all_text_contents() == here, key
    for title, name, way in EDGES:
        told = [row for row in rows(con, name, **asked) if row.get("way") == way]
        links = page.locator("section", has=page.get_by_role("heading", name=title, exact=True)).locator("tbody a")
        found = [link.rpartition(":")[2] for link in links.all_text_contents()]
        assert found == [str(row["other_feature_id"]) for row in told], (key, title)
    effects = rows(con, "feature_effects", **asked)
    falls = [f"{one['p_clean']:z.3f} → {one['p_target']:z.3f}{' flips' if one['flipped'] else ''}" for one in effects]
    assert page.locator(".pairs .value").all_text_contents() == falls, key
    said = page.locator("dl").inner_text()
    assert f"{facts['n_prompts']:,} prompts, {facts['n_tokens']:,} tokens" in said, key
    assert "–" in said if facts["auroc"] is None else f"{facts['auroc']:.3f}" in said, key


def require_samples(page: Page, title: str, samples: Sequence[Sample]) -> None:
    """A section of a card shows these samples, and none where there are none."""
    shown = page.locator("section", has=page.get_by_role("heading", name=title, exact=True)).locator(".samples li")
    assert shown.locator(".value").all_text_contents() == [f"{sample.activation:.2f}" for sample in samples], title
    for place, sample in enumerate(samples):
        spans = shown.nth(place).locator(".text span")
        found = spans.evaluate_all("all => all.map(one => [one.textContent, one.className, one.querySelector('mark') !== null])")
        told = [[t.text, f"t s{t.strength}{' template' if t.is_template else ''}", t.is_top] for t in sample.tokens]
        assert found == told, (title, place)


def test_cards_show_what_sql_answers(host: Host, browser: Browser, planted_lake: Path) -> None:
    page = browser.new_page()
    problems = told_by(page)
    page.goto(host.url)
    shown(page, "Features of planted")
    with connect(Lake.existing(planted_lake), "planted") as con:
        for layer, feature_ids in ((2, (5,)), (4, range(24)), (5, (5, 17))):
            for feature_id in feature_ids:
                require_equal(card(page, layer, feature_id), con, layer, feature_id)
    assert problems == []


def test_numbers_are_written_as_the_explorer_writes_them(host: Host, browser: Browser) -> None:
    chance = random.Random(0)
    values = [0.0, -0.001, 0.5, 1.5, 2.5, 0.125, 0.375, 9.95e-5, 99.5, 0.095, 9.96, 0.0001, 0.00001, 7.25, -0.625, 3.825, 1e6]
    values += [chance.choice((1, -1)) * chance.random() * 10 ** chance.randint(-8, 5) for _ in range(2000)]
    values += [chance.randint(-4000, 4000) / 512 for _ in range(2000)] + [chance.randint(0, 10**6) / 1000 for _ in range(2000)]
    page = browser.new_page()
    page.goto(host.url)
    written = "async all => { const { figure, short } = await import('/site/numbers.js'); return all.map(NUMBERS); }"
    each = "one => [figure(one, 0), figure(one), figure(one, 3), short(one)]"
    found = page.evaluate(written.replace("NUMBERS", each), values)
    assert found == [[_figure(value, 0), _figure(value), _figure(value, 3), _short(value)] for value in values]


def test_a_card_of_a_real_study_is_few_requests_and_bytes(browser: Browser, organism_lake: Path, tmp_path: Path) -> None:
    folder = pages_of(organism_lake, "organism", tmp_path / "set")
    with serving(folder) as host, connect(Lake.existing(organism_lake), "organism") as con:
        densest = con.sql("select layer, feature_id from features order by n_tokens desc limit 3").fetchall()
        critical = con.sql(
            "select layer, feature_id from populations order by n_prompts desc, layer, feature_id limit 4"
        ).fetchall()
        for layer, feature_id in dict.fromkeys(densest + critical):
            page = browser.new_context().new_page()  # with nothing in its cache
            page.goto(host.url)
            shown(page, "Features of organism")
            host.forget()
            require_equal(card(page, layer, feature_id), con, layer, feature_id)
            assert len(host.asked) <= MOST_REQUESTS, host.asked
            assert host.n_bytes <= MOST_BYTES, host.asked


def test_layers_of_several_saes_and_files_of_several_runs(browser: Browser, tmp_path: Path) -> None:
    """Two SAEs on a layer, and a prompt set that came later: an SAE's rows lie in two files then."""
    planted = write_twins(tmp_path / "study")
    lines = (tmp_path / "study" / "prompts.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "study" / "later.jsonl").write_text("".join(lines[::3]), "utf-8")
    (tmp_path / "study" / "prompts.jsonl").write_text("".join(line for n, line in enumerate(lines) if n % 3), "utf-8")
    recipe, lake = load_recipe(planted.recipe), Lake.create(tmp_path / "lake")
    later = recipe.prompts[0].model_copy(update={"set": "later", "file": tmp_path / "study" / "later.jsonl"})
    ingest(recipe, lake)
    ingest(recipe.model_copy(update={"prompts": (*recipe.prompts, later)}), lake)
    folder = pages_of(lake.root, "planted", tmp_path / "set")
    assert len(json.loads((folder / "site" / "saes" / "0.json").read_text("utf-8"))["activations"]) == 2
    with serving(folder) as host, connect(lake, "planted") as con:
        page = browser.new_page()
        page.goto(host.url)
        shown(page, "Features of planted")
        for sae_id in [one for (one,) in con.execute("select sae_id from saes where layer = 2 order by sae_id").fetchall()]:
            page.evaluate("hash => { location.hash = hash }", f"#/2/5?sae={sae_id}")
            require_equal(shown(page, f"Feature {sae_id}:5 "), con, sae_id, 5)
        require_equal(card(page, 3, 5), con, 3, 5)


def test_what_is_written_for_dense_features_looks_the_same(
    browser: Browser, planted_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MOST_FIRINGS", 200)
    folder = pages_of(planted_lake, "planted", tmp_path / "set")
    with serving(folder) as host, connect(Lake.existing(planted_lake), "planted") as con:
        page = browser.new_page()
        page.goto(host.url)
        for layer, feature_id in con.sql("select layer, feature_id from features where n_tokens > 200 order by all").fetchall():
            require_equal(card(page, layer, feature_id), con, layer, feature_id)


def test_every_page_fits_both_widths_in_light_and_dark_and_asks_no_other_host(host: Host, browser: Browser) -> None:
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
            problems, asked = told_by(page), asked_by(page)
            for place in PLACES:
                page.goto("about:blank")
                page.goto(host.url + place)
                page.wait_for_selector("main:not([aria-busy]) h1")
                require_form(page, width, place)
                require_visible_focus(page, place)
            assert problems == []
            assert not [url for url in asked if not url.startswith((host.url, "data:"))]


def test_by_keyboard_alone(host: Host, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(host.url)
    shown(page, "Features of planted")
    page.keyboard.press("/")
    page.keyboard.type("5")
    page.keyboard.press("Enter")
    shown(page, "Feature 0:5 of planted")
    page.keyboard.press("ArrowRight")
    shown(page, "Feature 0:6 of planted")
    page.keyboard.press("ArrowLeft")
    shown(page, "Feature 0:5 of planted")
    page.go_back()
    shown(page, "Feature 0:6 of planted")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null"), "a new page begins with its own links"
    assert card(page, 2, 23).locator("[data-key=ArrowRight]").count() == 0, "no next feature after the last"
    card(page, 0, 6)
    page.evaluate("document.querySelector('.skip').click()")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.title() == "Feature 0:6 of planted"


def test_the_list_is_sorted_by_its_address_and_leads_to_cards(host: Host, browser: Browser, planted_lake: Path) -> None:
    page = browser.new_page()
    page.goto(host.url)
    with connect(Lake.existing(planted_lake), "planted") as con:
        for order, heading in (("largest", "Largest"), ("auroc", "AUROC"), ("critical", "Critical for")):
            page.get_by_role("columnheader").get_by_text(heading, exact=True).click()
            page.wait_for_selector(f"th[aria-sort]:has-text('{heading}')")
            listed = page.locator("tbody th").all_inner_texts()
            theirs = rows(con, "feature_list", order=order, limit=tables.LISTED)
            assert listed == [f"{one['layer']}:{one['feature_id']}" for one in theirs], order
            assert order in page.url
    page.locator(".multiples a").nth(4).click()
    page.wait_for_selector(".multiples a[aria-current]")
    shown(page, "Features of planted")
    assert {one.partition(":")[0] for one in page.locator("tbody th").all_inner_texts()} == {"4"}
    page.get_by_role("link", name="4:5", exact=True).click()
    shown(page, "Feature 4:5 of planted")


def test_conditions_show_what_sql_answers(host: Host, browser: Browser, planted_lake: Path) -> None:
    page = browser.new_page()
    page.goto(f"{host.url}#/conditions")
    shown(page, "Conditions of planted")
    lines = page.locator("tbody tr").evaluate_all("all => all.map(one => [...one.children].map(cell => cell.textContent))")
    with connect(Lake.existing(planted_lake), "planted") as con:
        told = rows(con, "condition_list")
    assert [line[0] for line in lines] == [one["condition"] for one in told]
    for line, one in zip(lines, told, strict=True):
        share_of = f"{100 * one['n_flipped'] / one['n_refused']:.0f}%" if one["n_refused"] else "–"
        assert [*line[2:4], line[6]] == [f"{one['n_prompts']:,}", f"{one['n_answers']:,}", share_of]


def test_texts_of_others_stay_texts(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lakes, "WORDS", (SCRIPT, "b"))
    monkeypatch.setattr(lakes, "CATEGORIES", (SCRIPT, SCRIPT, "fraud", None, "food", None))
    lake = build_meaning_lake(tmp_path / "lake", [(0, 1, f"about {SCRIPT} things"), (1, 0, "periods")])
    with serving(pages_of(lake.root, "small", tmp_path / "set")) as host:
        page = browser.new_page()
        problems = told_by(page)
        for place, text in (
            ("#/", "about <script>"),
            ("#/0/1", "<img src=x"),
            ("#/conditions", "top_k_own"),
            ("#/about", "small"),
        ):
            page.goto(host.url + place)
            page.wait_for_selector("main:not([aria-busy]) h1")
            assert text in page.locator("main").inner_text(), place
            assert page.locator("main img, main script").count() == 0
            assert "broken" not in page.title()
        assert problems == []
        page.goto(f"{host.url}#/{SCRIPT}")
        shown(page, "Features of small")
        page.goto(f"{host.url}#/9/1")
        shown(page, "Not found")


def test_a_card_says_which_tables_are_not_there(browser: Browser, planted_lake: Path, tmp_path: Path) -> None:
    folder = pages_of(planted_lake, "planted", tmp_path / "set", tables=("prompts", "saes", "features", "separations"))
    with serving(folder) as host:
        page = browser.new_page()
        problems = told_by(page)
        page.goto(f"{host.url}#/4/5")
        said = shown(page, "Feature 4:5").locator("main").inner_text()
        for table in ("activations", "tokens", "feature_logits", "feature_sets", "populations"):
            assert table in said, table
        assert "1.000" in said, "the AUROC, which is there"
        page.goto(f"{host.url}#/conditions")
        assert "The set has no table ablations." in shown(page, "Conditions").locator("main").inner_text()
        assert problems == []


def test_a_host_that_knows_no_ranges_is_enough_and_named(browser: Browser, folder: Path, planted_lake: Path) -> None:
    with serving(folder, knows_ranges=False) as host, connect(Lake.existing(planted_lake), "planted") as con:
        page = browser.new_page()
        page.goto(host.url)
        for feature_id in (5, 6):
            require_equal(card(page, 4, feature_id), con, 4, feature_id)
        assert "This host sends whole files" in page.locator("main").inner_text()


def test_a_file_that_is_gone_is_said(browser: Browser, folder: Path, tmp_path: Path) -> None:
    (folder / "site" / "saes" / "3.json").rename(tmp_path / "3.json")
    try:
        with serving(folder) as host:
            page = browser.new_page()
            page.goto(f"{host.url}#/3/5")
            page.get_by_role("alert").wait_for()
            assert "site/saes/3.json cannot be read: the host answers 404" in page.get_by_role("alert").inner_text()
            card(page, 4, 5)
    finally:
        (tmp_path / "3.json").rename(folder / "site" / "saes" / "3.json")
