"""The documentation builds without a warning and asks the network for nothing when it is read."""

import os
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# What a browser loads by itself while it shows a page.
LOADED_BY_HTML = re.compile(
    r"<(?:script|img|iframe|embed|source|video|audio|track|object)\b[^>]*?\b(?:src|srcset|data|poster)\s*=\s*"
    r"[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel\s*=\s*[\"']?(?:stylesheet|preload|prefetch|preconnect|dns-prefetch|modulepreload|icon|manifest))"
    r"[^>]*?\bhref\s*=\s*[\"']?((?:https?:)?//[^\"'\s>]+)",
    re.IGNORECASE,
)
LOADED_BY_CSS = re.compile(
    r"@import\s+(?:url\()?[\"']?((?:https?:)?//[^\"')\s]+)|url\(\s*[\"']?((?:https?:)?//[^\"')]+)",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def site(root, run, tmp_path_factory):
    """The built site: the one that NOISEWORKS_SITE names, or built now.

    Without --quiet, which swallows the warnings that --strict counts.
    """
    if "NOISEWORKS_SITE" in os.environ:
        return root / os.environ["NOISEWORKS_SITE"]
    folder = tmp_path_factory.mktemp("site")
    done = run("mkdocs", "build", "--strict", "--site-dir", folder, cwd=root, NO_MKDOCS_2_WARNING="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_build_that_counts_warnings_does_not_swallow_them(root):
    commands = [line.split("#")[0].split() for line in (root / ".ci/run").read_text().splitlines()]
    (build,) = [words for words in commands if words[:4] == ["uv", "run", "mkdocs", "build"]]
    assert "--strict" in build
    assert not {"--quiet", "-q"} & set(build)


def remote_resources(folder: Path) -> list[str]:
    """Return what the pages under a folder would load from elsewhere, as "file: address"."""
    found = []
    for suffix, pattern in ((".html", LOADED_BY_HTML), (".html", LOADED_BY_CSS), (".css", LOADED_BY_CSS)):
        for file in sorted(folder.rglob(f"*{suffix}")):
            matches = pattern.findall(file.read_text())
            found += [f"{file.relative_to(folder)}: {first or second}" for first, second in matches]
    return found


@pytest.mark.parametrize(
    "page",
    [
        '<script async src="https://cdn.example/x.js"></script>',
        "<link href=https://fonts.example/css rel=stylesheet>",
        '<link rel="preconnect" href="//fonts.example">',
        '<img alt="a" src="http://example.org/a.png">',
        '<style>@import "https://example.org/a.css";</style>',
        "<style>body { background: url(https://example.org/a.png) }</style>",
    ],
)
def test_remote_resources_are_recognised(page, tmp_path):
    (tmp_path / "index.html").write_text(f'<a href="https://arxiv.org/abs/2312.12487">paper</a>{page}')
    assert len(remote_resources(tmp_path)) == 1


def test_links_to_elsewhere_are_not_resources(tmp_path):
    (tmp_path / "index.html").write_text('<a href="https://arxiv.org">paper</a><img src="local.png">')
    assert remote_resources(tmp_path) == []


def test_site_loads_nothing_from_elsewhere(site):
    assert list(site.rglob("*.html"))
    assert remote_resources(site) == []


def test_every_method_has_a_page_with_results_and_a_reference(site, members, root):
    for member in members:
        if member.folder.name == "tools":  # for developers, without a page
            continue
        slug = "core" if member.folder.name == "shared" else member.folder.name.replace("benchmarks", "bench")
        assert (site / "reference" / f"{slug}.html").exists()
        if member.is_method and (root / "benchmarks/results" / f"{slug}.json").exists():
            page = (site / "methods" / f"{slug}.html").read_text()
            assert "<!-- results -->" not in page
            assert "laptop" in page
            assert '<svg class="plot"' in page


def test_generated_pages_keep_no_link_out_of_the_site(site):
    """A relative link of a README leads to a page of the site or is none."""
    broken = []
    for file in site.rglob("*.html"):
        if file.name == "404.html":
            continue
        for target in re.findall(r"<(?:a|img)\b[^>]*?(?:href|src)=\"?([^\"\s>#?]+)", file.read_text()):
            if "://" not in target and not target.startswith(("mailto:", "data:")):
                path = (file.parent / target).resolve()
                if not path.exists():
                    broken.append(f"{file.relative_to(site)} -> {target}")
    assert not broken, "\n".join(broken)


@pytest.mark.browser
def test_browser_reads_the_site_without_the_network(site):
    """Opens every kind of page at desktop and phone width: no console error, no request to another host.

    Search also answers in a page that is opened from disk.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}"
        with sync_playwright() as playwright:
            flags = [
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
            ]
            browser = playwright.chromium.launch(executable_path=chromium, args=flags)
            for width in (1280, 390):
                page = browser.new_page(viewport={"width": width, "height": 900})
                requests, complaints = [], []
                page.on("request", lambda request, seen=requests: seen.append(request.url))
                page.on(
                    "console", lambda m, seen=complaints: seen.append(m.text) if m.type == "error" else None
                )
                page.on("pageerror", lambda error, seen=complaints: seen.append(str(error)))
                for name in ("index.html", "results.html", "methods/linear-ag.html", "reference/core.html"):
                    page.goto(f"{home}/{name}")
                    page.wait_for_load_state("networkidle")
                    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
                    assert overflow <= 1, f"{name} is {overflow} px wider than a window of {width} px"
                assert [url for url in requests if not url.startswith((home, "data:", "blob:"))] == []
                assert complaints == []
                page.close()
            page = browser.new_page()
            page.goto((site / "index.html").as_uri())
            page.wait_for_load_state("networkidle")
            page.keyboard.press("/")
            page.keyboard.type("caching")
            page.wait_for_selector(".md-search-result__link", state="attached", timeout=30_000)
            browser.close()
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves the site without a log line a request."""

    def log_message(self, *args):
        pass
