import itertools
import json
import re
from pathlib import Path

import pytest

from jaxlens.deployments import Workload
from jaxlens.exploring import ExploreResult, explore, front
from jaxlens.report import content, page, write_report
from jaxlens.report.operations import operations, roofs
from jaxlens.report.what_ifs import what_ifs
from jaxlens.requests import prepare
from tests.chromium import browser, opened

HOSTILE = "</script><img src=x onerror=alert(1)> & \u2028 'quoted' \"twice\""
needs_browser = pytest.mark.skipif(
    browser() is None, reason="no Chromium here: apt-get install chromium"
)


@pytest.fixture(scope="module")
def result() -> ExploreResult:
    return explore(
        "meta-llama/Llama-3.1-8B-Instruct",
        ["h100-sxm"],
        Workload(prompt_tokens=512.0, output_tokens=128.0),
        tpot_seconds=0.03,
        max_gpus=2,
    )


@pytest.fixture(scope="module")
def report(result: ExploreResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(
        result, folder / "out.html", title=HOSTILE, commands={HOSTILE: HOSTILE}
    )


def embedded(path: Path) -> dict:
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text)
    assert found is not None
    return json.loads(found.group(1))


def test_page_holds_the_front_and_the_best(result: ExploreResult, report: Path):
    shown = embedded(report)
    assert len(shown["front"]) == len(front(result))
    x, y = (
        shown["columns"].index(name)
        for name in ("seconds_per_output_token", "joules_per_output_token")
    )
    line = [shown["points"][index] for index in shown["front"]]
    assert all(a[x] <= b[x] and a[y] >= b[y] for a, b in itertools.pairwise(line))
    best = shown["recommended"][0]["joules_per_output_token"]
    assert best == pytest.approx(min(point[y] for point in shown["points"]), rel=1e-3)


def test_names_cannot_leave_their_place(report: Path):
    text = report.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert text.count("</script>") == 2  # the two elements of the frame
    assert embedded(report)["title"] == HOSTILE


def test_page_asks_nothing_of_a_network(report: Path):
    text = report.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}, addresses


def test_what_if_says_which_limit_a_change_misses(report: Path):
    rows = embedded(report)["what_ifs"]
    assert rows[0]["change"] == "as recommended" and not rows[0]["problem"]
    for row in rows[1:]:
        if row.get("seconds_per_output_token", 0.0) > 0.03:
            assert row["problem"]


def test_operations_stay_under_their_roofs(result: ExploreResult):
    request = prepare("meta-llama/Llama-3.1-8B-Instruct", "h100-sxm")
    limits = roofs(request)
    for operation in operations(request):
        roof = min(operation.peak_flop_per_s, operation.flop_per_byte * limits["HBM"])
        assert 0.0 < operation.flop_per_s <= roof * 1.0001, operation


def test_every_what_if_changes_the_answer_or_says_why_not():
    request = prepare("meta-llama/Llama-3.1-8B-Instruct", "h100-sxm")
    found = {row.change: row for row in what_ifs(request)}
    assert any(change.startswith("clock") for change in found)
    assert "fp8 weights" in found
    assert all(row.estimate is not None or row.problem for row in found.values())


@pytest.mark.parametrize("name", ["out.txt", "missing/out.html"])
def test_bad_paths_are_named(result: ExploreResult, tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=r"report: expected a (file|folder)"):
        write_report(result, tmp_path / name)


def test_nan_is_refused(report: Path):
    shown = embedded(report)
    shown["recommended"][0]["watts_per_gpu"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        page(shown)


def test_no_report_on_nothing(result: ExploreResult):
    nothing = explore(
        "meta-llama/Llama-3.1-8B-Instruct",
        ["h100-sxm"],
        Workload(prompt_tokens=512.0, output_tokens=128.0),
        tpot_seconds=1e-6,
        max_gpus=2,
    )
    with pytest.raises(ValueError, match="report: expected a deployment within"):
        content(nothing)


@needs_browser
def test_a_person_can_read_hover_select_and_brush(report: Path, tmp_path: Path):
    with opened(report) as shown:
        assert shown.evaluate("document.getElementById('title').textContent") == HOSTILE
        assert shown.evaluate("document.querySelectorAll('img').length") == 0
        dots = shown.evaluate("document.querySelectorAll('#front .dot').length")
        assert dots == len(embedded(report)["points"])
        shown.evaluate("document.getElementById('front').scrollIntoView()")
        x, y = shown.evaluate(
            "(() => { const b = [...document.querySelectorAll('#front .dot')].at(-1)"
            ".getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        shown.mouse("mouseMoved", x, y)
        tooltip = "document.getElementById('tooltip')"
        assert not shown.evaluate(f"{tooltip}.hidden")
        assert "J/token" in shown.evaluate(f"{tooltip}.textContent")
        shown.mouse("mousePressed", x, y)
        shown.mouse("mouseReleased", x, y)
        selected = "document.getElementById('selected').textContent"
        assert "J per output token" in shown.evaluate(selected)
        left, top, right, bottom = shown.evaluate(
            "(() => { const b = document.getElementById('front').getBoundingClientRect();"
            " return [b.x, b.y, b.right, b.bottom] })()"
        )
        shown.mouse("mouseMoved", left + 80, top + 30)
        shown.mouse("mousePressed", left + 80, top + 30)
        shown.mouse("mouseMoved", (left + right) / 2, (top + bottom) / 2)
        shown.mouse("mouseReleased", (left + right) / 2, (top + bottom) / 2)
        outside = "document.querySelectorAll('#front .outside').length"
        assert 0 < shown.evaluate(outside) < dots
        shown.key("Escape")
        assert shown.evaluate(outside) == 0
        assert len(shown.screenshot(tmp_path / "page.png")) > 50_000  # not blank
        assert shown.errors == []
        assert [url.split(":")[0] for url in shown.requests] == ["file"]
