"""The page of a population's fit: every section, who failed, and no number that is none."""

import json
import re

import fitted_lines as fitted
import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from dtwin_jax.models import one_compartment
from dtwin_jax.report import render_fit, write_fit
from dtwin_jax.twin.walk import Profile

SECTIONS = ("estimates", "goodness", "fits", "effects", "predictive")


@pytest.fixture(scope="module")
def page():
    return render_fit(fitted.build())


def test_page_has_every_section_and_a_figure_of_each(page):
    for section in SECTIONS:
        assert f'<section id="{section}">' in page and f'href="#{section}"' in page
    found = re.findall(r'<script type="application/json" id="data-([\w-]+)">(.*?)</script>', page, flags=re.S)
    names = [name for name, _ in found]
    assert names == ["goodness-0", "fits-0", "effects", "effects-by-fact", "predictive-0", "corrected-0"]
    assert all(json.loads(text)["data"] and "NaN" not in text for _, text in found)


def test_page_says_what_went_wrong_and_prints_no_number_that_is_none(page):
    own = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    assert "has not arrived at a maximum:</strong> max_steps reached." in own
    assert (
        f"1 of 8 patients could not be fitted.</strong> They have no course and no residual: {fitted.LOST}."
        in own
    )
    assert not re.search(r"\b(nan|NaN|inf|None)\b", own)
    assert "12.3456" in own and "69.4000 with constants" in own and ">4%<" in own


def test_an_objective_is_told_with_what_it_rests_on():
    tree = fitted.build()
    tree.attrs |= {"by": "quadrature", "nodes": 9, "draws": 0}
    assert "Adaptive quadrature<small>9 nodes in each direction" in render_fit(tree)
    tree.attrs["warnings"] = json.dumps(["omega_ka is flat"])
    assert "<li>omega_ka is flat</li>" in render_fit(tree)
    tree.attrs |= {"by": "importance", "nodes": 0, "draws": 512, "monte_carlo_error": 0.0321}
    assert "Importance sampling<small>512 draws, Monte Carlo error 0.032" in render_fit(tree)


def test_profiles_have_a_section_of_their_own():
    value = np.linspace(2.0, 4.0, 9)
    nothing = np.zeros(9, int)
    one = Profile(
        "level_pop",
        "likelihood",
        value,
        4.0 * (value - 3.0) ** 2,
        {},
        nothing,
        3.0,
        0.9,
        (2.4, np.inf),
        ("", "open"),
    )
    page = render_fit(fitted.build(), profiles=[one])
    assert '<section id="profiles">' in page and 'id="data-profiles"' in page
    own = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    assert "90% from" in own and "2.40" in own and "above: open" in own


def test_page_asks_for_nothing_outside_itself(page):
    assert page.count(get_plotlyjs()) == 1
    assert not re.search(r"https?://", page.replace(get_plotlyjs(), ""))


def test_page_of_a_fit_without_facts_is_whole(tmp_path):
    tree = fitted.build()
    tree["constant_data"].attrs["known"] = []
    path = write_fit(tree, tmp_path / "fit.html", title="Lines & more", model=one_compartment)
    page = path.read_text(encoding="utf-8")
    assert "<title>Lines &amp; more" in page and "effects-by-fact" not in page
    assert '<section id="model">' in page and page.endswith("</html>\n")
