"""Model cards: what a model says stands on the page, and what is computed agrees with its own sources."""

import functools
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from dtwin_jax.core.quantity import values
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.about import about, declared, parts, solver_words, wires
from dtwin_jax.dynamics.couple import couple
from dtwin_jax.models import CATALOGUE, linear_health_sde, one_compartment, two_compartment
from dtwin_jax.models.one_compartment import Inputs
from dtwin_jax.report import render_card, write_card
from dtwin_jax.report.card import study_of
from dtwin_jax.report.drawing import code
from dtwin_jax.twin.identify import fisher_information


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("card") / "card.html"
    assert write_card(one_compartment, path) == path
    return path.read_text(encoding="utf-8")


@functools.cache
def study():
    return study_of(one_compartment, budget=60.0)


def words(page):
    return " ".join(html.unescape(re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", page, flags=re.S)).split())


def section(page, name):
    found = re.search(rf'<section id="{name}">.*?</section>', page, flags=re.S)
    assert found, name
    return words(found[0])


def number(cell):
    return float(cell.replace("%", "").replace(",", "").replace("−", "-"))


class Fetches(HTMLParser):
    """What a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]


def test_card_asks_for_nothing_outside_itself(page):
    links = Fetches()
    links.feed(page)
    assert all(target.startswith("#") for target in links.found)
    own = page.replace(get_plotlyjs(), "")
    assert "http://" not in own and "https://" not in own and "default-src 'none'" in own
    assert page.count(get_plotlyjs()) == 1


def test_equations_stand_verbatim_in_the_order_of_the_file(page):
    equations = re.findall(r'<pre class="equations">(.*?)</pre>', page, flags=re.S)
    assert [html.unescape(found).split("\n") for found in equations] == [
        [
            "depot'   = F oral - ka depot",
            "central' = iv + ka depot - (CL / V) central",
            "concentration = central / V",
        ]
    ]
    assert "mrgsolve's pk1 model" in section(page, "equations")


def test_parameters_have_value_unit_prior_and_source(page):
    shown = section(page, "parameters")
    assert "V 20 L lognormal(median 20.0, log_sd 1.50) volume of distribution value: mrgsolve pk1" in shown
    assert "F 1 known bioavailability" in shown


def test_standard_errors_are_those_of_the_fisher_information():
    found = fisher_information(one_compartment, one_compartment.params(), one_compartment.example())
    alone, both = found.standard_error(relative=True), found.standard_error(prior=True, relative=True)
    for name, _, _, first, second, _ in study().information.rows:
        np.testing.assert_allclose(number(first), 100 * alone[name], rtol=0.06)
        np.testing.assert_allclose(number(second), 100 * both[name], rtol=0.06)


def test_limits_of_the_profiles_agree_with_the_standard_errors():
    """Of a likelihood that is nearly a parabola the interval is that of 1.96 standard errors of the log.

    The errors of measurement are held, and they share no information with the other parameters.
    """
    found = fisher_information(
        one_compartment, one_compartment.params(), one_compartment.example(), priors={"sd": 0.1, "cv": 0.1}
    )
    error = found.standard_error(relative=True)
    rows = {row[0]: row for row in study().limits.rows}
    assert set(rows) == {"CL", "V", "ka"}
    for name, (_, _, _, low, high, remark) in rows.items():
        assert remark == "closes"
        # Limits are shown to three digits.
        np.testing.assert_allclose(
            np.log(number(high) / number(low)) / 2, 1.96 * error[name], rtol=0.12, err_msg=name
        )


def test_a_study_that_does_not_see_a_parameter_says_so_and_leaves_its_profile_open():
    found = study_of(replace(one_compartment, example=intravenous), budget=60.0)
    assert any("nothing is seen of ka" in direction for direction in found.flat)
    row = next(row for row in found.information.rows if row[0] == "ka")
    assert row[3] == "not determined" and row[5] == "100%"
    limits = {row[0]: row for row in found.limits.rows}["ka"]
    assert limits[3:5] == ("open", "open") and "falls by" in limits[5]


def intravenous():
    """One dose into a vein."""
    return Record(Inputs(iv=Doses([0.0], [100.0])), {"concentration": Series([1.0, 8.0, 24.0], np.zeros(3))})


def test_a_card_says_why_nothing_is_computed():
    bare = words(render_card(replace(one_compartment, example=None)))
    assert "Nothing is computed here: the model has no typical study" in bare
    noisy = words(render_card(linear_health_sde))
    assert "Nothing is computed here: it is a stochastic differential equation" in noisy
    assert "Stochastic differential equations, time in a." in noisy


TWO_DRUGS = couple(
    "two_drugs",
    {"first": replace(one_compartment, dosing=None), "second": replace(two_compartment, dosing=None)},
    {"first.iv": "drip", "second.iv": "drip"},
)


def test_a_composite_shows_the_equations_of_each_part_and_its_wires():
    page = render_card(TWO_DRUGS)
    shown = section(page, "equations")
    for name in ("first (one_compartment)", "second (two_compartment)", "peripheral'"):
        assert name in shown
    assert "first.iv drip" in shown and "second.iv drip" in shown
    assert page.count('<pre class="equations">') == 2


def test_wires_carry_the_factor_of_the_units():
    given = couple(
        "by_day",
        {"drug": one_compartment, "other": two_compartment},
        {"other.iv": "drip"},
        time="d",
    )
    assert wires(given) == (("other.iv", "drip", pytest.approx(1.0 / 24.0)),)
    assert wires(one_compartment) == ()


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_every_model_of_the_catalogue_has_a_line_and_equations(name):
    model = CATALOGUE[name]
    assert about(model).line and not about(model).line.endswith(".")
    assert any(part.equations for part in parts(model))
    assert solver_words(model)


def test_every_model_of_the_catalogue_has_a_line_of_its_own():
    lines = {name: about(model).line for name, model in CATALOGUE.items()}
    assert len(set(lines.values())) == len(lines)


def test_a_part_without_a_state_is_told_by_what_it_shows():
    said = {part.name: part.line for part in parts(CATALOGUE["reflex_circulation"])}
    assert said["vessels (vessels)"] == "Two beds side by side, and the veins of both"
    assert parts(CATALOGUE["ovarian_cancer"])[2].line.startswith("Size of ovarian tumours")


def test_a_parameter_that_may_be_0_has_its_error_in_its_unit():
    """The slope of eGFR has a normal prior, eGFR at the start a log-normal one."""
    rows = {row[0]: row for row in study_of(CATALOGUE["egfr"], budget=0.0).information.rows}
    assert all(cell.endswith(" mL/min/{1.73_m2}/a") for cell in rows["slope"][3:5])
    assert all(cell.endswith("%") for cell in rows["egfr0"][3:5])


def test_what_stands_between_backticks_is_code():
    assert code("the <b> of `a < b`") == "the &lt;b&gt; of <code>a &lt; b</code>"
    bare = render_card(replace(CATALOGUE["hiv"], example=None))
    assert "<code>infectious</code>" in bare
    assert "`" not in section(bare, "equations") + section(bare, "validity") + section(bare, "study")


def test_all_that_is_declared_is_plain_data():
    said = declared(one_compartment)
    assert said["inputs"][0] == {"name": "oral", "unit": "mg/h", "doc": "into the depot", "neutral": 0.0}
    numbers = {p["name"]: p["value"] for p in said["parameters"]}
    assert numbers == {name: float(v) for name, v in values(one_compartment.params()).items()}
    json.dumps(said)
