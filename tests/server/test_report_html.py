"""The report as a person sees it: opened from disk in Chromium."""

import pytest

from tests.browser import chromium

from .test_slices import files  # noqa: F401 - a fixture

# Visible lines of every figure, as rectangles in its own coordinates.
FIGURES = """
[...document.querySelectorAll("figure > svg")].map(svg => {
  const frame = svg.getBoundingClientRect();
  return {
    name: svg.getAttribute("aria-label"), width: frame.width, height: frame.height,
    shapes: [...svg.querySelectorAll("path")].filter(one => one.getBoundingClientRect().width > 50).length,
    texts: [...svg.querySelectorAll("text")].map(text => {
      const {left, top, right, bottom} = text.getBoundingClientRect(), x = frame.left, y = frame.top;
      return [text.textContent, left - x, top - y, right - x, bottom - y];
    })
  };
})
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def overlaps(one, other, slack=2.0):
    """Whether two boxes [text, left, top, right, bottom] lie on each other by more than `slack` pixels both ways."""
    across = min(one[3], other[3]) - max(one[1], other[1])
    down = min(one[4], other[4]) - max(one[2], other[2])
    return across > slack and down > slack


@pytest.mark.process
def test_it_opens_from_disk_and_shows_its_figures(tmp_path, files):  # noqa: F811
    report = tmp_path / "report.html"
    report.write_bytes(files["report.html"])
    with chromium(tmp_path / "profile") as page:
        page.open(report, width=1280)
        assert page.requests() == [report.as_uri()]
        assert page.complaints() == []
        assert page.ask("document.querySelector('h1').innerText") == "Calibration of route"
        assert "web: trusts 100% of decisions" in page.ask("document.querySelector('.summary').innerText")
        figures = page.ask(FIGURES)
        assert len(figures) == 6
        for figure in figures:
            assert min(figure["width"], figure["height"]) > 400, figure["name"]
            assert figure["shapes"] >= 3, figure["name"]
            texts = figure["texts"]
            for index, text in enumerate(texts):
                assert 0 <= text[1] <= text[3] <= figure["width"], text
                assert 0 <= text[2] <= text[4] <= figure["height"], text
                assert not [other for other in texts[:index] if overlaps(text, other)], (figure["name"], text)
        assert page.ask(OVERFLOW) == 0
        page.open(report, width=400)
        assert page.ask(OVERFLOW) == 0
