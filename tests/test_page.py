"""The report page in a browser: every section, the scrubber, phone and dark; and on hostile names, damage and nothing.

Screenshots are kept under var/pages.
"""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.metrics import FrameScores
from storage import datasets, files
from storage.inventory import Item
from storage.secrets import ACTED_ON
from tasks import registry, tracking
from tasks.evaluate import evaluate_checkpoint
from tasks.pages import archive, models, page, pictures
from tasks.pages.models import Measured
from tasks.references import References
from tests import lamps
from tests import traced as traced_root
from tests.browsing import PATIENCE

SECTIONS = ["totals", "funnel", "time", "gate", "classes", "curves", "timelines", "quarantined", "unsure"]
SECTIONS += ["drift", "lineage"]
SCRIPT, IMAGE, LINK = "<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "javascript:alert(3)"
SECRET = "planted-secret-4711"


@pytest.fixture(scope="module")
def made(traced, tmp_path_factory):
    """The page of the traced root."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    page.page(str(traced / "root"), "a", out=str(path))
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A root of files and labels with markup in their names, one of them with a secret, and one that is no video."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lamps, "COLOURS", dict(zip((SCRIPT, IMAGE, LINK), lamps.COLOURS.values(), strict=True)))
        lamps.render(folder, train=3, held_out=2, weak=3)
    (folder / "archive" / f"{IMAGE}.mp4").write_bytes(b"no video")
    (folder / "archive" / "odd \x1b[31m\x07\x9b\u202e\u2028.mp4").write_bytes(b"no video either")
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {"dense/03.mp4": f"dense/{IMAGE} 03.mp4", "dense/04.mp4": f"dense/{SECRET}.mp4"}
    for old, new in names.items():
        (folder / "archive" / old).rename(folder / "archive" / new)
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"path": names.get(row["path"], row["path"])} for row in rows)
    traced_root.again(folder, str(folder / "root"))
    return str(folder / "root")


def copied(traced: Path, to: Path, *without: str) -> str:
    """A copy of the traced root without some of its folders."""
    return str(shutil.copytree(traced / "root", to, ignore=shutil.ignore_patterns(*without)))


def test_every_section_opens_and_has_something_to_say(opened, made):
    tab = opened(made)
    links = tab.locator("nav a")
    assert [link.get_attribute("href") for link in links.all()] == [f"#{name}" for name in SECTIONS]
    for link, name in zip(links.all(), SECTIONS, strict=True):
        link.click()
        assert tab.evaluate("location.hash") == f"#{name}"
        section = tab.locator(f"section#{name}")
        tab.wait_for_function(
            "name => document.getElementById(name).getBoundingClientRect().top < innerHeight / 2", arg=name
        )
        assert section.locator("h2").is_visible()
        assert section.locator(".why").count() or len(section.inner_text()) > 60, name
    assert made.stat().st_size < 3e6


def test_its_numbers_are_those_of_the_root(opened, made, traced):
    root = str(traced / "root")
    data = datasets.load(root, "a")
    champion = registry.champion(root, "detector")
    evaluation = evaluate_checkpoint(root, data, models.checkpoint_of(
        root, models.standing(root, "detector"), champion.version), "page")  # fmt: skip
    tab = opened(made)
    cards = dict(
        zip(tab.locator(".cards dt").all_inner_texts(), tab.locator(".cards .big").all_inner_texts(), strict=True)
    )
    used = sum(sum(data.kept(root, part)) for part in data.parts)
    assert cards["Clips"] == str(data.clips) and cards["Champion"] == f"v{champion.version}"
    assert cards["mAP"] == f"{100 * evaluation.metrics['every_frame_map']:.1f}" and cards["Predicted"] == "100 %"
    steps = [int(text) for text in tab.locator(".funnel .left b").all_inner_texts()]
    assert steps == [10, 9, data.clips, used, used, used]
    assert [chip for chip in tab.locator(".funnel .chip").all_inner_texts() if "duplicate, dropped" in chip]
    shown = {row.locator("th").inner_text(): row.locator("td").first.inner_text()
             for row in tab.locator("#classes tbody tr").all()}  # fmt: skip
    assert shown == {row["class"]: f"{100 * row['ap']:.1f}" for row in evaluation.per_class}


def test_the_filmstrip_scrubs(opened, made):
    tab = opened(made)
    view = tab.locator("[data-timeline]").first
    slider, picture, said = view.locator("input"), view.locator(".stage img"), view.locator("output")
    places = []

    def looked() -> tuple[str, ...]:
        place = view.evaluate("node => node.style.getPropertyValue('--at')")
        pressed = view.locator(".strip button[aria-pressed=true]")
        assert pressed.count() == 1 and slider.get_attribute("aria-valuetext") == said.inner_text()
        return place, picture.get_attribute("src"), said.inner_text(), pressed.get_attribute("data-second")

    slider.focus()
    for key in ("Home", "ArrowRight", "PageUp", "End"):
        slider.press(key)
        places.append(looked())
    assert [place for place, *_ in places][::3] == ["0%", "100%"] and len({place for place, *_ in places}) == 4
    assert len({text for _, _, text, _ in places}) == 4
    assert places[0][1] != places[3][1] and float(places[3][3]) > float(places[0][3])
    slider.fill("100")
    assert looked()[0] == "50%"
    truth = view.evaluate(
        "node => [...node.querySelectorAll('.track')].flatMap(row => JSON.parse(row.dataset.track).spans"
        ".map(([s, e]) => [row.dataset.name, (s + e) / 2 / node.dataset.duration * 200]))"
    )
    assert truth
    for name, place in truth:
        slider.fill(str(round(place)))
        assert name in said.inner_text().partition("predicted")[0]
    view.locator(".strip button").nth(2).click()
    assert looked()[3] == view.locator(".strip button").nth(2).get_attribute("data-second")


def test_a_keyboard_reaches_everything(opened, made):
    tab = opened(made)
    tab.keyboard.press("Tab")
    skip = tab.locator(".skip")
    assert skip.evaluate("node => node === document.activeElement") and skip.bounding_box()["x"] >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "totals"
    kinds = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        focused = tab.evaluate(
            "(n => [n.tagName, n.type || '', getComputedStyle(n).outlineStyle])(document.activeElement)"
        )
        kinds.add((focused[0], focused[1]))
        assert focused[0] == "BODY" or focused[2] != "none", focused
    assert {("INPUT", "range"), ("DIV", "")} <= kinds


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("light", 1200, "light"), ("dark", 1200, "dark"), ("phone", 375, "dark")]
)
def test_it_fits_a_phone_and_the_dark(opened, made, screenshots, name, width, scheme):
    tab = opened(made, width, scheme)
    wide = tab.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
    assert max(wide) <= width
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    ink = tab.evaluate("getComputedStyle(document.querySelector('#curves svg text')).fill.match(/\\d+/g).map(Number)")
    assert (max(ground) < 80) == (scheme == "dark") and abs(sum(ink) - sum(ground)) > 200
    tab.screenshot(path=screenshots / f"{name}.png", full_page=True)
    assert (screenshots / f"{name}.png").stat().st_size > 20_000


def test_hostile_names_are_shown_and_not_run(opened, hostile, tmp_path, screenshots, monkeypatch):
    monkeypatch.setenv("REEL_SECRET", SECRET)
    page.page(hostile, "a", out=str(tmp_path / "page.html"))
    source = (tmp_path / "page.html").read_text()
    assert SECRET not in source and "odd �[31m����.mp4" in source and not ACTED_ON.search(source.replace("\n", ""))
    tab = opened(tmp_path / "page.html")
    tab.locator("input").first.press("End")
    text = tab.locator("body").inner_text()
    assert all(name in text for name in (SCRIPT, IMAGE, LINK, f"{IMAGE}.mp4", "not_video"))
    assert tab.locator("script").count() == 1 and tab.locator("[onerror], img[src=x], a[href^=javascript]").count() == 0
    tab.screenshot(path=screenshots / "hostile.png", full_page=True)


def test_the_policy_stops_what_escaping_would_let_through(browser, listener, made, tmp_path):
    port, calls = listener
    planted = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    planted += f"<img src='http://127.0.0.1:{port}/x.png'></main>"
    text = made.read_text().replace("</main>", planted)
    for page_, runs in ((text, False), (text.replace("Content-Security-Policy", "X-Nothing"), True)):
        (tmp_path / "page.html").write_text(page_)
        tab = browser.new_page()
        tab.set_default_timeout(PATIENCE)
        tab.goto((tmp_path / "page.html").as_uri())  # until what could be loaded was
        assert (tab.title() == "run", bool(calls)) == (runs, runs)
        tab.close()


def test_what_a_root_lacks_is_said(opened, traced, tmp_path):
    root = copied(traced, tmp_path / "root", "mlflow")
    said = page.page(root, "a")
    path = Path(said.partition(" ")[0])
    assert path.parent == tmp_path / "root" / "reports" and path.name.startswith("state-a-")
    tab = opened(path)
    for name in ("gate", "classes", "curves", "timelines", "unsure"):
        assert (
            "No " in tab.locator(f"#{name} .why").inner_text()
            and "retrain" in tab.locator(f"#{name} .why").inner_text()
        )
    assert tab.locator("#quarantined .why").inner_text() and tab.locator("[data-timeline]").count() == 0


def test_media_that_are_gone_leave_a_page_without_frames(opened, traced, tmp_path):
    root = copied(traced, tmp_path / "root", "*.tar")
    page.page(root, "a", out=str(tmp_path / "page.html"))
    tab = opened(tmp_path / "page.html")
    view = tab.locator("[data-timeline]").first
    assert "cannot be read" in view.inner_text() and view.locator("img").count() == 0
    view.locator("input").press("End")
    assert "truth" in view.locator("output").inner_text()


def test_a_quarantined_file_has_a_picture_where_one_can_be_made(traced, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    video = str(traced / "archive" / "dense" / "00.mp4")
    assert pictures.first_frame(video, 1).startswith("data:image/jpeg;base64,"), "on this disk any size is read"
    for bad in (tmp_path / "text.mp4", tmp_path / "gone.mp4"):
        assert pictures.first_frame(str(bad), 1 << 20) is None


def test_drift_is_against_the_version_before(traced):
    root = str(traced / "root")
    now = datasets.load(root, "a")
    older = [name.removesuffix(".json") for name in files.names(files.join(root, "datasets", "a"), ".json")]
    (before,) = set(older) - {now.version, "latest"}
    assert "first version" in archive.moved(root, now, [f"a@{now.version}", "", "b@"]).why
    for about, others in (({"before": before}, []), ({"before": ""}, [f"a@{before}"])):
        moved = archive.moved(root, replace(now, about=about), others)
        assert moved.before == f"a@{before}" and moved.found.common == now.clips and moved.found.rows
    gone = archive.moved(root, replace(now, about={"before": "0" * 16}), [])
    assert gone.found is None and "gone" in gone.why and "0" * 16 in gone.why


def test_a_page_goes_with_its_version(traced):
    root = str(traced / "root")
    named = References(root, lambda put: False, [])
    version = datasets.latest(root, "a")
    reasons = [named.reason(Item(f"reports/infer-a-{one}-v2.html", 1, 0.0)) for one in (version, "0" * 16)]
    assert reasons == ["", "page of no dataset version"]


def test_a_run_does_not_fail_over_its_page(hostile, tmp_path, capsys):
    assert page.told(files.open_root(str(tmp_path / "empty")), "prepare", "a") == ""
    said = capsys.readouterr().out.strip().splitlines()
    assert len(said) == 1 and "could not be made" in said[0] and "no dataset 'a'" in said[0]


def test_a_retraining_keeps_its_page_in_mlflow(hostile):
    run = tracking.start(hostile, "retrain a", {}, {})
    url = page.told(hostile, "retrain", "a", "detector", run)
    assert url.startswith(f"{hostile}/reports/retrain-a-") and url.endswith("-v1.html")
    kept = [one.path for one in tracking.client(hostile).list_artifacts(run, "report")]
    assert kept == ["report/page.html"]
    assert tracking.run_url(hostile, run).partition("#")[0] in Path(url).read_text()
    assert f"[Report page](<{Path(url).as_uri()}>)" in page.link(url) and page.link("") == ""


def test_a_timeline_has_a_limited_number_of_rows():
    times = np.linspace(0, 9, 90)
    scores = np.tile(np.linspace(0.1, 0.9, 40, dtype=np.float32), (90, 1))
    truth = np.array([1.0]), np.array([2.0]), np.array([3])
    made = models._timeline(("x", scores, times, truth, 9.0), [f"c{k}" for k in range(40)], [], None)
    assert [row["name"] for row in made.rows[:3]] == ["c3", "c39", "c38"]
    assert (len(made.rows), made.more) == (16, 24) and len(made.rows[0]["data"]["scores"]) == 201


def scored(shift: float, videos: int = 12) -> Measured:
    """A model of two classes: the first is told apart the better the larger ``shift``, the second is guessed."""
    rng = np.random.default_rng(3)
    held = {}
    for k in range(videos):
        truth = rng.random((40, 2)) < 0.3
        noise = rng.random((40, 2))
        held[str(k)] = (noise + shift * truth * [1, 0]).astype(np.float32), truth
    return Measured(1, "", ["a", "b"], [], FrameScores(2, held))


def test_intervals_hold_the_difference_of_each_class():
    before, low, high = models.differences(scored(0.0), scored(0.8))
    rows, why = models.class_rows(scored(0.8), scored(0.0), None)
    assert low[0] > 20 and low[1] == high[1] == 0 and not why
    words = {row.name: row.word for row in rows}
    assert words == {"a": "better", "b": "no sure difference"} and rows[0].before == before[0]
    assert all(row.low <= row.delta <= row.high for row in rows)
    assert [row.word for row in models.class_rows(scored(0.0), scored(0.8), None)[0] if row.name == "a"] == ["worse"]


def test_what_cannot_be_compared_has_no_interval():
    rows, why = models.class_rows(scored(0.8, 12), scored(0.0, 1), None)
    assert "cannot be compared" in why and {row.low for row in rows} == {None}
    told = {"classes": [{"class": "a", "champion": 0.25}]}
    rows, why = models.class_rows(scored(0.8), None, told)
    assert "gate" in why and {row.name: row.before for row in rows} == {"a": 25.0, "b": None}
