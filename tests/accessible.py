"""What a page must have so that all can use it: checked in the page itself, by the rules of WCAG 2.2 that a script can decide.

accessible.js says which: contrast of every text with what lies behind it, names of links, buttons, fields and pictures, headings
and headers of tables, labels that exist, no id twice, no order of tabs of its own, and content that scrolls reached by keyboard.
"""

from pathlib import Path

from playwright.sync_api import Page

LEAST, LEAST_LARGE = 4.5, 3.0
"""Contrast of text, and of text of 24 pixels, or 18.7 in bold (WCAG 1.4.3)."""
FAULTS = (Path(__file__).parent / "accessible.js").read_text("utf-8")
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 20)))"
UNSEEN = """
() => {
  const one = document.activeElement;
  if (one === document.body || one === document.documentElement) return null;
  const style = getComputedStyle(one.closest(".choice") ?? one);
  const box = one.getBoundingClientRect();
  const isHere = box.width > 0 && box.bottom > 0 && box.top < innerHeight;
  return [isHere && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2, one.outerHTML.slice(0, 160)];
}
"""
MOST_TABS = 40


def require_accessible(page: Page, where: object) -> None:
    """A page without a fault of those above."""
    page.evaluate(DRAWN)
    faults = page.evaluate(FAULTS, [LEAST, LEAST_LARGE])
    assert not faults, (where, faults[:12])


def require_visible_focus(page: Page, where: object) -> None:
    """What Tab leads to is seen, and marked as the place where one is; the first of it skips to the content."""
    page.evaluate("document.activeElement?.blur()")
    first = ""
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        told = page.evaluate(UNSEEN)
        if told is None:
            break
        shows, element = told
        first = first or element
        assert shows, (where, element)
    assert 'class="skip"' in first, (where, first)
