"""How the report page looks: contrast, phones, the keyboard; and pages of runs that failed or had nothing to do."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage import datasets, files, ledger
from storage.errors import InputError
from storage.ledger import Entry
from storage.timing import KINDS, OTHER
from tasks.audits.contents import STAGES
from tasks.pages import page

LONG = "very_long_name_" * 20
HOSTILE = f"Incomplete: <script>alert(5)</script><img src=x onerror=alert(6)> {LONG}"
CONTRAST = """() => {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const ground = (node) => {
    const layers = [];
    for (let one = node; one; one = one.parentElement) layers.push(rgba(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || ["SCRIPT", "STYLE"].includes(node.tagName) || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const below = ground(node instanceof SVGElement ? node.ownerSVGElement.parentElement : node);
    const ink = over(rgba(node instanceof SVGElement ? style.fill : style.color), below);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    found.push([text.slice(0, 40), ratio(ink, below), large ? 3 : 4.5]);
  }
  for (const bar of document.querySelectorAll(".bar i, .key i, .interval i, .share i")) {
    const below = ground(bar.parentElement);
    const style = getComputedStyle(bar);
    const ink = rgba(style.backgroundColor); ink[3] *= Number(style.opacity);
    found.push([bar.parentElement.className + " " + bar.className, ratio(over(ink, below), below), 3]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def failed(traced, tmp_path_factory):
    """The page of a run that failed, with a note, on a root whose runs were timed."""
    root = str(shutil.copytree(traced / "root", tmp_path_factory.mktemp("failed") / "root"))
    into = {kind: 1.0 for kind in (*KINDS, OTHER)}
    entries = [Entry("predict", "kept", clips=9, seconds=8.0, scores=into), Entry("<b>old</b>", "kept", seconds=2.0)]
    ledger.write(root, STAGES, "infer-a", entries)
    made = page.render(root, "infer", "a", "", "", HOSTILE, "Nothing to do: <b>planted</b>")
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(made.html)
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (375, "light"), (375, "dark")])
def test_all_text_and_every_bar_can_be_told_from_its_ground(opened, failed, screenshots, width, scheme):
    tab = opened(failed, width, scheme)
    found = tab.evaluate(CONTRAST)
    assert len(found) > 100
    assert not [one for one in found if one[1] < one[2]]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.screenshot(path=screenshots / f"failed-{width}-{scheme}.png", full_page=True)


def test_a_failure_is_said_first_and_none_of_its_text_is_run(opened, failed):
    tab = opened(failed)
    alert, note = tab.get_by_role("alert"), tab.get_by_role("status").first
    assert "<script>alert(5)</script>" in alert.inner_text() and "only what is missing is done" in alert.inner_text()
    assert "Nothing to do: <b>planted</b>" in note.inner_text() and tab.locator("section b b").count() == 0
    assert alert.bounding_box()["y"] < tab.locator("#totals").bounding_box()["y"]


def test_time_is_shown_by_stage_and_by_kind_of_work(opened, failed):
    tab = opened(failed)
    stages = tab.locator(".times li")
    assert [one.partition("\n")[0] for one in stages.all_inner_texts()] == ["predict", "<b>old</b>"]
    first, second = stages.all_inner_texts()
    assert "80 %" in first and "decode 12 %" in first and "20 %" in second and "not measured" in second
    bar = stages.first.locator(".bar")
    whole, parts = bar.bounding_box()["width"], [one.bounding_box()["width"] for one in bar.locator("i").all()]
    assert len(parts) == 8 and sum(parts) == pytest.approx(0.8 * whole, abs=2)
    colours = tab.evaluate(
        "[...document.querySelectorAll('#time .key i')].map(i => getComputedStyle(i).backgroundColor)"
    )
    assert len(set(colours)) == len(KINDS) + 1, colours


def test_every_control_is_reached_by_the_tab_key_and_shows_it(opened, failed):
    tab = opened(failed)
    wanted = tab.evaluate(
        "(nodes => { nodes.forEach((n, i) => n.dataset.place = i); return nodes.length })([..."
        "document.querySelectorAll('a[href], input, button, [tabindex]')].filter(n => n.tabIndex >= 0))"
    )
    seen = set()
    for _ in range(wanted + 2):
        tab.keyboard.press("Tab")
        place, outline = tab.evaluate(
            "(n => [n.dataset.place, getComputedStyle(n).outlineStyle])(document.activeElement)"
        )  # fmt: skip
        assert place is None or outline != "none"
        seen.add(place)
    assert {str(i) for i in range(wanted)} <= seen


def test_a_listing_without_a_dataset_has_a_page_and_a_root_without_either_says_so(opened, traced, tmp_path):
    root = str(shutil.copytree(traced / "root", tmp_path / "root", ignore=shutil.ignore_patterns("datasets", "mlflow")))
    url = page.told(files.absolute(root), "prepare", "a", failure="BudgetExceeded: 9 of 10 files are quarantined")
    assert url.endswith("reports/prepare-a-failed.html")
    tab = opened(tmp_path / "root" / "reports" / "prepare-a-failed.html")
    assert "9 of 10 files" in tab.get_by_role("alert").inner_text()
    steps = tab.locator(".funnel .left b").all_inner_texts()
    assert steps[:3] == ["10", "9", "0"] and "duplicate, dropped" in tab.locator("#funnel").inner_text()
    with pytest.raises(InputError, match="no dataset 'b'"):
        page.page(root, "b")


def test_where_nothing_was_done_the_page_stays_and_a_failures_goes(traced, tmp_path):
    root = files.absolute(str(shutil.copytree(traced / "root", tmp_path / "root")))
    version = datasets.load(root, "a").version
    url = page.told(root, "prepare", "a", unchanged=version)
    failed = page.told(root, "prepare", "a", failure="BudgetExceeded: 9 of 10 files are quarantined")
    Path(url).write_text("as it was")
    assert page.told(root, "prepare", "a", unchanged=version) == url and Path(url).read_text() == "as it was"
    assert not Path(failed).exists()
    assert page.told(root, "prepare", "a") == url and Path(url).read_text() != "as it was"


@pytest.mark.parametrize("address", ["None/flow-runs/flow-run/1", None, "http://127.0.0.1:4200/flow-runs/flow-run/1"])
def test_only_a_page_that_there_is_is_named(monkeypatch, address):
    monkeypatch.setattr(page, "flow_run", SimpleNamespace(id="1", ui_url=address))
    assert page._links("", "") == ([("Prefect", address)] if str(address).startswith("http") else [])
