from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_data import REASON, write_results

from enginehouse.errors import InvalidArgumentError, NotFoundError
from enginehouse.report.write import ReportFiles, write_report

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """What a browser would load, the rows' marks, the ids, and whether tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.rows: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.rows += [known["data-row"]] if "data-row" in known else []
        self.ids += [known["id"]] if "id" in known else []
        references = [known[name] for name in ("src", "href", "data", "action", "srcset") if name in known]
        self.links += [reference[1:] for reference in references if reference.startswith("#")]
        self.loads += [reference for reference in references if not reference.startswith(("#", "data:"))]
        if tag in ("script", "link", "iframe", "object", "embed"):
            self.loads.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(files: ReportFiles) -> tuple[Page, str]:
    text = files.html.read_text("utf-8")
    page = Page()
    page.feed(text)
    return page, text


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportFiles, Page, str, list[object]]:
    directory = tmp_path_factory.mktemp("results") / "r"
    rows = write_results(directory)
    files = write_report(directory)
    return files, *parse(files), rows  # type: ignore[return-value]


def test_the_page_is_self_contained_and_well_formed(report: tuple[ReportFiles, Page, str, list[object]]) -> None:
    _, page, text, _ = report
    assert page.loads == [] and page.open == []
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(h" not in text
    assert len(page.ids) == len(set(page.ids)) and set(page.links) <= set(page.ids)
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text


def test_the_page_has_every_row(report: tuple[ReportFiles, Page, str, list[object]]) -> None:
    files, page, text, rows = report
    wanted = {f"{r.lane.model}|{r.lane.mode}|{r.lane.device}|host|{r.lane.batch}|1" for r in rows}  # type: ignore[attr-defined]
    assert set(page.rows) == wanted and len(page.rows) == len(rows) == 12
    with files.csv.open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 12 and float(table[0]["latency_ms.p99"]) > 0 and table[0]["interval.low"]
    assert len(json.loads(files.json.read_text())["rows"]) == 12
    assert "onnxruntime-cpu-int8" in text


def test_absent_stays_absent(report: tuple[ReportFiles, Page, str, list[object]]) -> None:
    files, page, text, _ = report
    assert 'data-quantity="power_w"' not in text and 'data-quantity="cpu_ms"' in text
    assert "power_w" not in files.csv.read_text().partition("\n")[0]
    assert all("power_w" not in row for row in json.loads(files.json.read_text())["rows"])
    words = " ".join(page.text)
    assert "no power was reported by any device" in words and "no temperature was reported" in words
    assert REASON in words and "0.00 W" not in words


def test_paper_reasons_and_budget_are_there(report: tuple[ReportFiles, Page, str, list[object]]) -> None:
    files, page, _, _ = report
    words = " ".join(page.text)
    for identifier in [f"C{n}" for n in range(1, 11)] + [f"V{n}" for n in range(1, 8)]:
        assert identifier in page.text
    assert words.count("not testable here") >= 10
    assert "Modes that could not run" in words and "tensorrt-int8" in words
    value = json.loads(files.json.read_text())
    assert {claim["verdict"] for claim in value["claims"]} == {"not testable here"}
    assert len(value["not_run"]) == 6 and value["within_budget"]["latency_ms"] == 7
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files.plots)
    assert {f"plots/{path.name}" for path in files.plots} == set(value["plots"])


def test_a_gpu_run_is_judged(tmp_path: Path) -> None:
    write_results(tmp_path / "r", gpu=True)
    files = write_report(tmp_path / "r", output=tmp_path / "out", budget_ms=5, budget_quantity="p50")
    page, text = parse(files)
    verdicts = {claim["id"]: claim["verdict"] for claim in json.loads(files.json.read_text())["claims"]}
    assert verdicts["C3"] == verdicts["C4"] == "confirmed" and verdicts["C5"] == "refuted"
    assert 'data-quantity="power_w"' in text and len(page.rows) == 24
    assert not (tmp_path / "r/report.html").exists()


def test_a_run_that_measured_nothing_has_a_report(tmp_path: Path) -> None:
    write_results(tmp_path / "r", telemetry=False)
    (tmp_path / "r/rows.jsonl").unlink()
    page, _ = parse(write_report(tmp_path / "r"))
    assert page.rows == [] and "no telemetry was recorded" in " ".join(page.text)


def test_markup_in_names_is_text(tmp_path: Path) -> None:
    write_results(tmp_path / "r", telemetry=False)
    path = tmp_path / "r/rows.jsonl"
    path.write_text(path.read_text().replace('"resnet_v1_50"', '"<script>alert(1)</script>&\\""'))
    page, _ = parse(write_report(tmp_path / "r"))
    assert page.loads == []


def test_what_is_no_results_directory(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds no results"):
        write_report(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"model": "m"}\n')
    with pytest.raises(InvalidArgumentError, match=r"rows.jsonl line 1"):
        write_report(tmp_path)
    with pytest.raises(InvalidArgumentError, match="budget"):
        write_report(tmp_path, budget_quantity="p42")
