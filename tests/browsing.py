"""Pages in headless Chromium: files are opened, and ask for nothing and complain of nothing."""

import shutil
from pathlib import Path

import pytest

PATIENCE = 240_000  # milliseconds for a step in the browser, on a machine that others load
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium of this machine."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is on this machine; `make browser` installs one")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        words = ["--no-sandbox", "--disable-dev-shm-usage"]
        started = play.chromium.launch(executable_path=program, timeout=PATIENCE, args=words)
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """Opens a page file in a context of its own; what it asked for and complained of is told when the test ends."""
    contexts, asked, said = [], [], []

    def open_(path: Path, width: int = 1200, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        tab.goto(path.as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()] * len(contexts)
        return tab

    yield open_
    outside = [url for url in asked if not url.startswith(("file:", "data:"))]
    for context in contexts:
        context.close()
    assert not outside and not said, (outside, said)


@pytest.fixture(scope="session")
def screenshots():
    """Where screenshots stay for people to look at."""
    folder = Path(__file__).parent.parent / "var" / "pages"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
