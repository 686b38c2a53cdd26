"""The report: one file, no network, nothing unescaped, and a browser that draws all of it."""

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import one_compartment_result as synthetic
import pytest
import xarray as xr
from plotly.offline import get_plotlyjs

from dtwin_jax.plot.posterior import summarise
from dtwin_jax.report import write_report
from dtwin_jax.report.tables import significant, spreads

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    data = synthetic.build()
    path = tmp_path_factory.mktemp("report") / "report.html"
    extra = {"forecast": data.forecast, "replicates": data.replicates, "scores": data.scores}
    return write_report(data.result, path, curves=data.curves, **extra)


@pytest.fixture(scope="module")
def page(report):
    return report.read_text(encoding="utf-8")


class Links(HTMLParser):
    """What a page would fetch, and the text of its style sheets."""

    def __init__(self):
        super().__init__()
        self.fetched, self.styles, self.inside = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        found = dict(attrs)
        self.fetched += [found[key] for key in ("src", "srcset", "data", "poster", "action") if key in found]
        self.fetched += [found["href"]] if "href" in found and not found["href"].startswith("#") else []
        self.styles += [found["style"]] if "style" in found else []

    def handle_data(self, data):
        if self.inside == "style":
            self.styles.append(data)

    def handle_endtag(self, tag):
        self.inside = ""


def test_page_asks_for_nothing_outside_itself(page):
    links = Links()
    links.feed(page)
    assert links.fetched == []
    assert links.styles and not any(re.search(r"url\(|@import|https?:", style) for style in links.styles)
    assert "http://" not in page.replace(get_plotlyjs(), "") and "https://" not in page.replace(
        get_plotlyjs(), ""
    )
    assert "default-src 'none'" in page


def test_plotly_is_in_the_page_once(page):
    assert page.count(get_plotlyjs()) == 1
    assert len(page) < 8e6


def test_ids_are_escaped_wherever_they_stand(page):
    assert html.escape(synthetic.ODD) in page
    assert synthetic.ODD not in page and "<b>Zo" not in page
    own = page.replace(get_plotlyjs(), "")
    for patient in (synthetic.ODD, *(f"patient {i}" for i in range(2, 7))):
        assert f"<span>{html.escape(patient)}</span>" in own


def test_failed_patients_and_gaps_are_said(page):
    assert "1 of 6 patients could not be solved." in page
    assert "up to 20 of 200 draws failed" in page
    assert "1 of 150 simulated cohorts left out" in page
    assert "Not yet to be relied on" in page
    own = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    assert not re.search(r"\b(nan|NaN|inf|None)\b", own)


def test_page_holds_every_section_and_table(page):
    for section in (
        "patients",
        "parameters",
        "variability",
        "convergence",
        "residuals",
        "left-out",
        "predictive",
        "scores",
    ):
        assert f'<section id="{section}">' in page and f'href="#{section}"' in page
    assert "expected log predictive density" in page and "Pareto k above limit" in page
    assert "0.213" in page and "−0.471" in page and "lognormal(median 5.20, cv 0.500)" in page


def test_figures_are_json_that_a_script_element_can_hold(page):
    found = re.findall(r'<script type="application/json" id="data-[\w-]+">(.*?)</script>', page, flags=re.S)
    assert len(found) == 6 + 9
    assert all(json.loads(text)["data"] and "<" not in text for text in found)


def test_report_is_written_whole_or_not_at_all(tmp_path):
    data, path = synthetic.build(draws=20), tmp_path / "report.html"
    path.write_text("the old one")
    with pytest.raises(ValueError, match="no group 'predictions'"):
        write_report(data.result, path, curves=xr.DataTree())
    assert path.read_text() == "the old one" and os.listdir(tmp_path) == ["report.html"]
    assert write_report(data.result, path, curves=data.curves) == path
    assert path.read_text(encoding="utf-8").endswith("</html>\n") and os.listdir(tmp_path) == ["report.html"]


def test_large_cohort_shows_the_first_patients_and_says_so(tmp_path):
    data = synthetic.build(63, draws=20)
    page = write_report(data.result, tmp_path / "r.html", curves=data.curves).read_text(encoding="utf-8")
    assert page.count('<article class="panel">') == 60
    assert "The first 60 of 63 patients are shown" in page


def test_independent_patients_without_optional_groups_have_a_report(tmp_path):
    data = synthetic.build(3, draws=20)
    own = data.result["posterior"].dataset[["CL", "V", "ka"]]
    root = xr.Dataset(attrs={"name": "one_compartment", "kind": "independent"})
    groups = {"/": root, "posterior": own, "observed_data": data.result["observed_data"].dataset}
    result = xr.DataTree.from_dict(groups)
    page = write_report(result, tmp_path / "r.html", curves=data.curves).read_text(encoding="utf-8")
    assert 'id="residuals"' not in page and 'id="predictive"' not in page and 'id="variability"' in page
    assert "Every patient could be solved." in page


PRIOR_AND_SPREAD = [
    ({"lognormal": {"median": 4.0, "log_sd": 1.0}}, "CV 53%"),
    ({"halfnormal": {"scale": 4.0}}, "CV 53%"),
    ({"gamma": {"shape": 4.0, "rate": 1.0}}, "CV 53%"),
    ({"normal": {"mean": 4.0, "sd": 1.0, "low": 0.0}}, "CV 53%"),
    ({"normal": {"mean": 4.0, "sd": 1.0}}, "sd 0.500 L/h"),
    ({"normal": {"mean": 4.0, "sd": 1.0, "low": 1.0}}, "sd 0.500 on the log from the limit"),
    ({"normal": {"mean": 4.0, "sd": 1.0, "low": 0.0, "high": 9.0}}, "sd 0.500 on the logit"),
    ({"uniform": {"low": 0.0, "high": 9.0}}, "sd 0.500 on the logit"),
    ({"beta": {"a": 2.0, "b": 2.0}}, "sd 0.500 on the logit"),
    (None, "sd 0.500"),
]


@pytest.mark.parametrize(("prior", "text"), PRIOR_AND_SPREAD)
def test_only_a_spread_on_the_log_is_a_coefficient_of_variation(prior, text):
    # sqrt(exp(0.5^2) - 1) = 0.533
    result = synthetic.build(3, draws=20).result
    result["posterior"]["omega_CL"].values[:] = 0.5
    result.attrs["priors"] = json.dumps({} if prior is None else {"CL": prior})
    rows = summarise(result, ["CL_pop", "omega_CL"])
    table = spreads(result, rows)
    assert table is not None and table.rows[0][table.head.index("between patients")] == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,234"), (0.012345, "0.0123"), (-2.5, "−2.50"), (1.5e-9, "1.50·10^−9")],
)
def test_significant_digits(value, text):
    assert significant(value) == text


def test_numbers_that_do_not_exist_are_a_dash():
    assert significant(float("nan")) == significant(np.inf) == significant(None) == "–"


PROBE = """<script>setTimeout(() => {
  dispatchEvent(new Event('beforeprint'));  // Draws what is not yet in view.
  const plots = [...document.querySelectorAll('.plot')];
  document.body.dataset.probe = JSON.stringify({
    plots: plots.length, drawn: plots.filter((e) => e.querySelector('.main-svg')).length,
    page: document.documentElement.scrollWidth, window: innerWidth,
    columns: getComputedStyle(document.querySelector('.patients')).gridTemplateColumns.split(' ').length,
    errors: window.failures || [] });
}, 6000)</script>"""
LISTEN = "<script>window.failures = []; addEventListener('error', (e) => window.failures.push(e.message)); \
addEventListener('securitypolicyviolation', (e) => window.failures.push(e.blockedURI))</script>"


def probe(report, tmp_path, width, dark=False):
    """What a browser without a network made of the page."""
    text = report.read_text(encoding="utf-8").replace("<body>", f"<body>{LISTEN}", 1)
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>\n</html>", f"{PROBE}</body>\n</html>"), encoding="utf-8")
    quiet = ["quic", "background-networking", "component-update", "sync", "gpu"]
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--no-first-run",
        *(f"--disable-{name}" for name in quiet),
    ]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},16000"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command += ["--virtual-time-budget=15000", "--dump-dom", page.as_uri()]
    out = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    found = re.search(r'data-probe="([^"]*)"', out)
    assert found, "the page's scripts did not run to their end"
    return json.loads(html.unescape(found[1]))


@needs_browser
@pytest.mark.parametrize(("width", "columns", "dark"), [(1400, 3, False), (500, 1, True)])
def test_browser_without_network_draws_every_figure(report, tmp_path, width, columns, dark):
    seen = probe(report, tmp_path, width, dark)
    assert seen["errors"] == []
    assert seen["drawn"] == seen["plots"] == 15
    assert seen["columns"] == columns
    assert seen["page"] <= seen["window"]
