"""Pages of runs in a browser: pictures load, nothing is cut off, and colours follow the reader's. Needs Chromium."""

import json
import re
import shutil
import subprocess

import pytest
from runs import nasbench201_run, search_run, training_run

import genotypes
import visualize
from pictures import compare, history, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def in_a_browser(page, tmp_path, width, probe, dark=False):
    """What the script `probe` posts of the page, in a window of this width."""
    (tmp_path / "probe.html").write_text(page + probe)
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1400,1000", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command += ["--virtual-time-budget=10000", "--dump-dom", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return json.loads(re.search(r"&lt;&lt;(.*)&gt;&gt;", done.stdout).group(1))


CUT_OFF = """<script>addEventListener("load", () => parent.postMessage(
  [...document.querySelectorAll(".scroll, .picture")]
    .map(part => part.scrollWidth - part.clientWidth), "*"))</script>"""


def test_nothing_of_a_comparison_is_cut_off(tmp_path):
    """On 1200 pixels: neither a column of the table nor a part of a picture."""
    paths = [search_run(tmp_path / "search-EXP-20260101-120000"), nasbench201_run(tmp_path / "two")]
    paths += [training_run(tmp_path / "eval-EXP-20260102-120000", genotypes.NASNet, init_channels=36, layers=20)]
    runs = [history.read(path) for path in paths]
    page = report.of_runs(runs, compare.table(runs), visualize.picture_runs(runs, "png"))
    assert in_a_browser(page, tmp_path, 1200, CUT_OFF) == [0, 0, 0]


PROBE = """<script>addEventListener("load", () => parent.postMessage({
  page: document.documentElement.scrollWidth, window: innerWidth,
  ground: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color, pictures: [...document.images].map(image => image.naturalWidth),
  labels: Math.min(...[...document.images].map(image => image.clientWidth / image.naturalWidth)) }, "*"))</script>"""
FRAME = """<!doctype html><pre id="seen"></pre><script>addEventListener("message",
  event => document.getElementById("seen").textContent = "<<" + JSON.stringify(event.data) + ">>")</script>
<iframe src="probe.html" width="{width}" height="800"></iframe>"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [375, 1200])
def test_the_page_in_a_browser(tmp_path, width, dark):
    """All pictures load, nothing but pictures and tables scrolls sideways, and the colours follow the reader's."""
    run = history.read(search_run(tmp_path / "run"))
    page = report.of_run(run, visualize.picture_run(run, "png"))
    seen = in_a_browser(page, tmp_path, width, PROBE, dark)
    assert seen["window"] == width
    assert seen["page"] <= width
    assert len(seen["pictures"]) == 6
    assert min(seen["pictures"]) > 300
    assert seen["labels"] > 0.25
    ground, ink = (sum(map(int, re.findall(r"\d+", seen[key])[:3])) for key in ("ground", "ink"))
    assert (ground < ink) == dark
