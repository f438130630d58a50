"""The page on which images are compared: what it asks, what it writes, whom it answers."""

import json
import shutil
import urllib.request
from threading import Thread

import pytest
from noiseworks.core.errors import InputError
from noiseworks.d3po.answers import Answers, load_answers, save_answers
from noiseworks.d3po.label.page import LabelApp, open_answers, serve, sides
from noiseworks.d3po.labels import read_labels
from PIL import Image
from werkzeug.test import Client

TEXTS = ["a red circle", "<b>bold</b>"]


@pytest.fixture
def drawn(tmp_path):
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / f"{number:05d}.png")
    (tmp_path / "samples.json").write_text(json.dumps({"prompts": TEXTS, "copies": 3}))
    return tmp_path


@pytest.fixture
def app(drawn):
    answers, data = open_answers(drawn / "me.jsonl", drawn / "samples.json", 2, 3)
    return LabelApp(
        drawn, TEXTS, answers, lambda found: save_answers(drawn / "me.jsonl", found, data), lambda: None
    )


def asked(client):
    return json.loads(client.get("/state").data)


def test_the_best_image_meets_the_next_one():
    answers = Answers(2, 3)
    assert (answers.question.best, answers.question.other) == (0, 1)
    answers.answer(1)
    assert (answers.question.best, answers.question.other) == (1, 2)
    answers.answer(None)
    assert answers.labels() == [[0, 1, 1], [0, 0, 0]]
    answers.answer(0)
    assert answers.labels() == [[0, 1, 1], [0, 0, 0]]  # the second prompt is not finished
    answers.answer(2)
    assert answers.labels() == [[0, 1, 1], [0, 0, 1]]
    assert answers.question is None
    answers.undo()
    assert (answers.question.best, answers.question.other) == (0, 2)
    with pytest.raises(InputError, match="does not fit"):
        answers.answer(1)


def test_every_answer_is_on_disk_and_a_new_start_goes_on(app, drawn):
    client = Client(app)
    for choice in ("left", "same", "right"):
        before = asked(client)
        pair = app.answers.question
        client.post("/answer", json={"number": before["number"], "choice": choice})
        meant = {"same": None} | dict(
            zip(("left", "right"), sides(pair.number, pair.best, pair.other), strict=True)
        )
        assert load_answers(drawn / "me.jsonl").better[-1] == meant[choice]
    again, _ = open_answers(drawn / "me.jsonl", drawn / "samples.json", 2, 3)
    assert again.better == app.answers.better
    assert again.question == app.answers.question
    assert read_labels(drawn / "me.jsonl", 2, 3) == [again.labels()]
    with pytest.raises(InputError, match="3 images, not 2 of 4"):
        read_labels(drawn / "me.jsonl", 2, 4)
    (drawn / "samples.json").write_text(json.dumps({"prompts": ["others"] * 2, "copies": 3}))
    with pytest.raises(InputError, match="other images"):
        open_answers(drawn / "me.jsonl", drawn / "samples.json", 2, 3)


def test_a_second_click_and_an_undo(app):
    client = Client(app)
    first = asked(client)
    for _ in range(2):  # a double click answers the same question twice
        client.post("/answer", json={"number": first["number"], "choice": "left"})
    assert asked(client)["done"] == 1
    assert json.loads(client.post("/undo", json={}).data) == first
    client.post("/undo", json={})  # nothing to take back
    assert asked(client) == first


def test_sides_are_drawn_evenly():
    assert 430 < sum(sides(number, 0, 1)[0] for number in range(1000)) < 570


def test_images_are_the_drawn_ones_and_nothing_else(app, drawn):
    client = Client(app)
    assert client.get(f"/images/{asked(client)['left']}").data[:4] == b"\x89PNG"
    for path in ("/images/6", "/images/../samples.json", "/me.jsonl"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("request_of", "status"),
    [
        ({"headers": {"Host": "evil.example"}, "json": {"number": 0, "choice": "left"}}, 400),
        ({"data": {"number": "0", "choice": "left"}}, 400),  # a form of another site
        ({"json": {"number": 0, "choice": "up"}}, 400),
        ({"json": [1]}, 400),
        ({"data": "{", "content_type": "application/json"}, 400),
    ],
)
def test_what_is_no_answer_of_this_page_changes_nothing(app, request_of, status):
    client = Client(app)
    assert client.post("/answer", **request_of).status_code == status
    assert asked(client)["done"] == 0


def test_the_page_is_served_at_this_machine_until_finished(app, drawn):
    server = serve(drawn, TEXTS, app.answers, app.save, 0)
    thread = Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.port}"
    page = urllib.request.urlopen(address, timeout=10).read().decode()
    assert "ArrowLeft" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is loaded from elsewhere
    with pytest.raises(InputError, match="taken"):
        serve(drawn, TEXTS, app.answers, app.save, server.port)
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{address}/finish", b"{}", headers), timeout=10)
    thread.join(10)
    server.server_close()
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"data": "x"}', '{"data": "x", "prompts": 1, "copies": 2}\n{"better": 5}']
)
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "other.jsonl").write_text(text)
    with pytest.raises(InputError, match="holds no answers"):
        load_answers(tmp_path / "other.jsonl")


@pytest.mark.browser
def test_the_page_fits_the_screen_and_takes_keys_clicks_and_taps(app, drawn):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    api = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    server = serve(drawn, TEXTS, app.answers, app.save, 0)
    thread = Thread(target=server.serve_forever)
    thread.start()
    complaints = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for width, height, touch in ((1280, 800, False), (500, 900, True)):
            screen = {
                "viewport": {"width": width, "height": height},
                "color_scheme": "dark",
                "has_touch": touch,
            }
            page = browser.new_page(**screen)
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.wait_for_function("document.getElementById('left').naturalWidth > 0")
            sides_of = "['scrollWidth', 'scrollHeight'].map(side => document.documentElement[side])"
            assert page.evaluate(sides_of) == [width, height]
            assert page.evaluate("document.getElementById('left').style.imageRendering") == "pixelated"
            if touch:
                page.tap("[data-choice=left] img")
                page.wait_for_function("document.getElementById('count').textContent === '3 of 4'")
                page.click("#finish")
                page.wait_for_function("document.getElementById('prompt').textContent.startsWith('Saved')")
            else:
                assert page.text_content("#prompt") == TEXTS[0]
                page.keyboard.press("ArrowRight")
                page.wait_for_function("document.getElementById('count').textContent === '1 of 4'")
                page.click("#choices [data-choice=same]")
                page.wait_for_function("document.getElementById('count').textContent === '2 of 4'")
                assert page.text_content("#prompt") == TEXTS[1]  # as text, not as markup
        browser.close()
    thread.join(10)
    server.server_close()
    assert not thread.is_alive()
    assert complaints == []
    kept = load_answers(drawn / "me.jsonl", open_answers(drawn / "me.jsonl", drawn / "samples.json", 2, 3)[1])
    assert len(kept.better) == 3
