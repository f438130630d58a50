"""The page: a small web app for one person at this machine."""

import json
import webbrowser
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.d3po.answers import Answers, load_answers, save_answers
from werkzeug.exceptions import BadRequest, HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.utils import send_from_directory
from werkzeug.wrappers import Request, Response

HOST = "127.0.0.1"
ROUTES = Map(
    [
        Rule("/", endpoint="page"),
        Rule("/state", endpoint="state"),
        Rule("/images/<int:number>", endpoint="image"),
        Rule("/answer", endpoint="answer", methods=["POST"]),
        Rule("/undo", endpoint="undo", methods=["POST"]),
        Rule("/finish", endpoint="finish", methods=["POST"]),
    ]
)


class LocalRequest(Request):
    """A request of a page that this machine serves: another site's name that points here is refused."""

    trusted_hosts = ("127.0.0.1", "localhost")


class LabelApp:
    """Asks, and writes every answer before it shows the next question.

    Args:
        folder: Images of `sample`, numbered prompt by prompt.
        texts: The prompts.
        answers: What was said before; added to.
        save: Called after each change.
        finish: Called when the person is done.
    """

    def __init__(
        self,
        folder: Path,
        texts: Sequence[str],
        answers: Answers,
        save: Callable[[Answers], None],
        finish: Callable[[], None],
    ) -> None:
        self.folder, self.texts, self.answers = folder, texts, answers
        self.save, self.finish, self.lock = save, finish, Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request (WSGI)."""
        try:
            request = LocalRequest(environ)
            request.host  # noqa: B018  (raises where the name is not this machine's)
            endpoint, values = ROUTES.bind_to_environ(environ).match()
            # A form of another site can send no JSON without asking first, and is not answered then.
            if request.method == "POST" and not request.is_json:
                raise BadRequest("JSON is expected")
            with self.lock:
                response = getattr(self, f"on_{endpoint}")(request, **values)
        except HTTPException as error:
            response = error
        return response(environ, start_response)

    def on_page(self, request: Request) -> Response:
        """Return the page."""
        text = files("noiseworks.d3po.label").joinpath("page.html").read_text(encoding="utf-8")
        return Response(text, mimetype="text/html")

    def on_image(self, request: Request, number: int) -> Response:
        """Return an image."""
        if number >= len(self.texts) * self.answers.copies:
            raise NotFound
        return send_from_directory(self.folder, f"{number:05d}.png", request.environ)

    def on_state(self, request: Request) -> Response:
        """Return the question, or that there is none."""
        asked, done = self.answers.question, len(self.answers.better)
        said: dict[str, Any] = {"done": done, "total": self.answers.total, "number": None}
        if asked is not None:
            first = asked.prompt * self.answers.copies
            left, right = sides(asked.number, asked.best, asked.other)
            said |= {"number": asked.number, "prompt": self.texts[asked.prompt]}
            said |= {"left": first + left, "right": first + right}
        return Response(json.dumps(said), mimetype="application/json")

    def on_answer(self, request: Request) -> Response:
        """Take an answer: left, right or same. One to a question that was answered before changes nothing."""
        said, asked = request.get_json(), self.answers.question
        choice = said.get("choice") if isinstance(said, dict) else None
        if choice not in ("left", "right", "same"):
            raise BadRequest("choice must be left, right or same")
        if asked is not None and said.get("number") == asked.number:
            left, right = sides(asked.number, asked.best, asked.other)
            self.answers.answer({"left": left, "right": right, "same": None}[choice])
            self.save(self.answers)
        return self.on_state(request)

    def on_undo(self, request: Request) -> Response:
        """Take the last answer back."""
        self.answers.undo()
        self.save(self.answers)
        return self.on_state(request)

    def on_finish(self, request: Request) -> Response:
        """End the labelling."""
        self.finish()
        return self.on_state(request)


def sides(number: int, best: int, other: int) -> tuple[int, int]:
    """Return which image is left and which right: by lot, so that a hand's habit favours neither."""
    return (best, other) if mix64(number, 0) & 1 else (other, best)


class _Quiet(WSGIRequestHandler):
    """Writes no line for each request."""

    def log_request(self, *args: Any) -> None:
        """Do nothing."""


def open_answers(file: Path, data: Path, prompts: int, copies: int) -> tuple[Answers, str]:
    """Return the answers that a file has, or none yet, and the fingerprint of what is labelled.

    Args:
        file: The file.
        data: What `sample` says of its images.
        prompts: Number of prompts.
        copies: Images of a prompt.

    Raises:
        InputError: When it holds something else, or answers about other images.
    """
    fingerprint = sha256(data.read_bytes()).hexdigest()[:16]
    found = load_answers(file, fingerprint) if file.exists() else Answers(prompts, copies)
    return found, fingerprint


def serve(
    folder: Path, texts: Sequence[str], answers: Answers, save: Callable[[Answers], None], port: int
) -> BaseWSGIServer:
    """Return a server of the page at this machine's own address; `serve_forever` returns when the person is done.

    Args:
        folder: Images.
        texts: Prompts.
        answers: What was said before.
        save: Called after each change.
        port: 0 takes a free one.

    Raises:
        InputError: When the port is taken.
    """
    # A shutdown waits for the loop, which waits for the request that asks for it: hence a thread.
    app = LabelApp(folder, texts, answers, save, lambda: Thread(target=server.shutdown).start())
    try:
        server = make_server(HOST, port, app, threaded=True, request_handler=_Quiet)
    except (OSError, SystemExit) as error:
        raise InputError(f"port {port} is taken; choose another one, or 0 for a free one") from error
    return server


def label_images(
    folder: Path,
    texts: Sequence[str],
    copies: int,
    out: Path,
    data: Path,
    port: int,
    show: Callable[..., None],
    browser: bool = False,
) -> Answers:
    """Ask until all is answered or the person is done, and return what was said.

    Args:
        folder: Images of `sample`.
        texts: Prompts.
        copies: Images of a prompt.
        out: File of the answers.
        data: What `sample` says of its images.
        port: Of the page.
        show: Called with questions answered, in all, and where the page is.
        browser: Whether to open the page in the person's browser.

    Raises:
        InputError: When the file holds something else, or the port is taken.
        KeyboardInterrupt: On Ctrl-C; all answers are on disk.
    """
    answers, fingerprint = open_answers(out, data, len(texts), copies)
    save_answers(out, answers, fingerprint)
    if answers.question is None:
        return answers

    where = ""

    def save(found: Answers) -> None:
        save_answers(out, found, fingerprint)
        show(len(found.better), found.total, where)

    with serve(folder, texts, answers, save, port) as server:
        address = f"http://{HOST}:{server.port}"
        where = f"label at {address} (Ctrl-C stops)"
        show(len(answers.better), answers.total, where)
        if browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped; the same command goes on") from None
    return answers
