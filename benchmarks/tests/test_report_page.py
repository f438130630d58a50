"""The report as a file and in a browser: complete, offline, without overflow on wide and narrow screens."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from noiseworks.bench.claims import Measurement
from noiseworks.bench.runner.describe import Described
from noiseworks.bench.runner.discovery import Source
from noiseworks.bench.runner.environment import describe_environment
from noiseworks.bench.runner.records import claim_record, measurement_record
from noiseworks.bench.runner.report import write_report
from noiseworks.bench.runner.results import failed_import, judge_claim, results_document
from noiseworks.bench.runner.tasks import Outcome, Task

VOID_ELEMENTS = {"meta", "link", "img", "input"}


@pytest.fixture
def document(fakes, tmp_path):
    """The results of one judged claim, with hostile and long texts, and one that cannot be imported."""
    from dataclasses import replace

    import fake_claims

    claim = replace(fake_claims.STEADY, statement="Longer <b>than</b> it should be. " * 8)
    source = Source("fake-steady", ("fake_claims:STEADY",), "0.5")
    described = Described(source, claim_record(claim, "quick"), claim)
    outcomes = []
    for seed in (500, 501):
        task = Task(source, 1, "quick", {"prompts": 20}, seed, None, "cpu", 60.0)
        folder = task.folder(tmp_path)
        folder.mkdir(parents=True)
        arms = {}
        for arm in claim.arms:
            score = np.random.default_rng(seed).normal(0.8, 0.05, 20) + (arm.role == "method") * 0.001
            calls = [20.0 if arm.role == "baseline" else 15.0] * 20
            (folder / f"{arm.name}.png").write_bytes(fake_claims.PNG)
            measured = Measurement(
                {"calls": calls, "score": score},
                series={"score by step": ([1, 2, 3], [0.1, 0.5, 0.8])},
                images={
                    "first prompt, with a title_that_has_no_place_to_break_" * 3: folder / f"{arm.name}.png"
                },
                notes=["a note & its ampersand"],
            )
            arms[arm.name] = {**measurement_record(measured, folder), "seconds": 1.5}
        result = {"arms": arms, "seconds": 3.0, "machine": {"gpu": None, "threads": 1}}
        outcomes.append(Outcome(task, folder, result, None, 3.0))
    missing = Described(Source("fake-missing", ("no:CLAIM",), "0.5"), None, error="No module named 'no'")
    entries = [judge_claim(described, outcomes, tmp_path), failed_import(missing, tmp_path)]
    environment = describe_environment("noiseworks bench --scale quick")
    return results_document(json.loads(json.dumps(entries)), environment, "quick", None, "cpu")


@pytest.fixture
def report(document, tmp_path):
    return write_report(document, tmp_path)


@pytest.fixture
def chromium():
    """Chromium; the test is skipped where none is installed."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    api = pytest.importorskip("playwright.sync_api")
    flags = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
    quiet = ("--disable-background-networking", "--disable-component-update")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*flags, *quiet])
        yield browser
        browser.close()


class Balance(HTMLParser):
    """Checks that elements close in order and collects ids."""

    def __init__(self):
        super().__init__()
        self.open, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        if tag not in VOID_ELEMENTS:
            assert self.open.pop() == tag


def test_page_holds_every_part_of_a_claim(report):
    text = report.read_text()
    for part in ("network calls", "×0.75 [×0.75, ×0.75]", "oracle score", "Fewer calls", "a note &amp; its"):
        assert part in text
    for part in (
        "arXiv:0000.00000",
        "No module named",
        "noiseworks bench --scale quick",
        "500, 501",
        "numpy",
    ):
        assert part in text
    assert "&lt;b&gt;than&lt;/b&gt;" in text
    assert text.count("data:image/png;base64,") == 2
    assert "1 of 1 effects in the promised direction, 1 at the promised size" in text
    assert re.search(r"judged verdicts", text, re.IGNORECASE) is None, "no result of these is committed"


def test_pictures_stand_in_one_grid_with_arms_as_columns(report):
    text = report.read_text()
    (grid,) = re.findall(r'<table class="grid-of-pictures">.*?</table>', text, re.DOTALL)
    assert re.findall(r'<th scope="col">([^<]*)</th>', grid) == ["Plain sampling", "Fewer calls"]
    (row,) = re.findall(r'<th scope="row">([^<]*)</th>(.*?)</tr>', grid, re.DOTALL)
    assert row[0].startswith("first prompt, with a title")
    assert row[1].count("<img") == 2


def test_headers_and_drawings_say_what_they_are(report):
    text = report.read_text()
    assert "<th>" not in text
    drawings = re.findall(r'<svg(?![^>]*aria-hidden)[^>]*role="img">(.{7})', text)
    assert len(drawings) == text.count("<svg") - text.count('aria-hidden="true"')
    assert set(drawings) == {"<title>"}


def test_page_is_well_formed_and_names_no_address(report):
    text = report.read_text()
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    addresses = set(re.findall(r'(?:src|href)="([^"#][^"]*)"|url\(([^#)][^)]*)\)', text))
    assert all(one.startswith("data:") or not one for pair in addresses for one in pair)
    assert "<script" not in text


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_wide_and_narrow_screens_and_stays_offline(report, scheme, chromium):
    for width in (1280, 390):
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        messages, requests = [], []
        page.on("console", lambda message, seen=messages: seen.append(message.text))
        page.on("pageerror", lambda error, seen=messages: seen.append(str(error)))
        page.on("request", lambda request, seen=requests: seen.append(request.url))
        page.goto(Path(report).as_uri())
        assert messages == []
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        assert page.locator("nav").bounding_box()["y"] >= 0, "the navigation stays"
        page.locator("label", has=page.locator("#show-failed")).click()
        assert not page.locator("article#fake-steady").is_visible()
        assert page.locator("article#fake-missing").is_visible()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
        assert brightness > 200 if scheme == "light" else brightness < 60


@pytest.mark.browser
def test_nine_claims_are_short_until_something_is_opened(document, tmp_path, chromium):
    claim = document["claims"][0] | {"statement": "What the method does, in a sentence or two. " * 3}
    nine = document | {"claims": [claim | {"method": f"fake-{i}"} for i in range(9)]}
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(write_report(nine, tmp_path).as_uri())
    assert page.locator("article").count() == 9
    assert page.locator("details[open]").count() == 0
    assert page.evaluate("document.documentElement.scrollHeight") <= 4_000
