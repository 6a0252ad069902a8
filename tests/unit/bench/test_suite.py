from __future__ import annotations

import re
from pathlib import Path

import pytest

from enginehouse.bench.suite_file import load_suite, packaged_suites, parse_suite
from enginehouse.errors import InvalidArgumentError, NotFoundError
from enginehouse.paper import load_paper

GOOD = "name: s\nmodels: [resnet_v1_50]\nmodes: [onnxruntime-cpu-fp32]\nbatches: [1, 2]\n"


def test_packaged_suites_are_valid() -> None:
    assert packaged_suites() == ("frameworks", "paper", "quick", "served")
    assert all(load_suite(name).description for name in packaged_suites())
    quick = load_suite("quick")
    # Every mode of the paper, so that a report says of each whether it could run.
    assert {mode.name for mode in load_paper().modes} < {mode.name for mode in quick.modes}
    assert quick.batches == (1, 2, 4, 8)


def test_the_paper_suite_covers_the_paper() -> None:
    suite, paper = load_suite("paper"), load_paper()
    assert {model.name for model in suite.models} == set(paper.models)
    modes = {mode.name: mode for mode in suite.modes}
    for mode in paper.modes:
        assert (modes[mode.name].device, modes[mode.name].precision) == (mode.device, mode.precision)
    assert suite.batches == paper.batch_sizes
    for value in paper.values:
        if value.batch is not None:
            assert value.batch in suite.batches_of(modes[value.mode])


def test_a_user_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    (tmp_path / "r.onnx").touch()
    path.write_text(
        "name: mine\n"
        "models: [vgg16, {name: resnet_v1_50-onnx, file: r.onnx}, {name: b, registered: b}]\n"
        "modes:\n"
        "  - onnxruntime-cpu-int8\n"
        "  - {name: one, backend: onnxruntime, device: cpu, precision: fp32, load_options: {intra_op_threads: 1}}\n"
        "  - {name: tensorrt-int8, batches: [64], build_options: {cuda_graph: true}}\n"
        "batches: [1]\nscopes: [host, served]\nconcurrency: [1, 8]\ngpus: all\ninstances: 2\n"
        "measure: {window_seconds: 0.5}\ncalibration: {method: percentile, percentile: 99.9, dataset: d}\n"
    )
    suite = load_suite(path)
    assert suite.modes[1].load_options == {"intra_op_threads": 1}
    assert suite.modes[2].build_options == {"cuda_graph": "true"}
    assert suite.batches_of(suite.modes[2]) == (64,) and suite.all_batches == (1, 64)
    assert suite.gpus == () and suite.measure.window_seconds == 0.5 and suite.calibration.percentile == 99.9
    assert suite.digest != load_suite("quick").digest


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("[]", "the document", "a mapping with the keys"),
        (GOOD + "batch: [1]\n", "batch", "one of the keys"),
        ("name: s\nmodes: [onnxruntime-cpu-fp32]\nbatches: [1]\n", "the document", "'models' is missing"),
        (GOOD.replace("[1, 2]", "[1, x]"), "batches[1]", "an integer from 1"),
        (GOOD.replace("[1, 2]", "[0]"), "batches[0]", "an integer from 1"),
        (GOOD.replace("[1, 2]", "[true]"), "batches[0]", "an integer from 1"),
        (GOOD.replace("[1, 2]", "[1, 1]"), "batches[1]", "not given before"),
        (GOOD.replace("[1, 2]", "[]"), "batches", "at least one"),
        (GOOD.replace("onnxruntime-cpu-fp32", "onnx-fp32"), "modes[0]", "a mode such as"),
        (GOOD.replace("[onnxruntime-cpu-fp32]", "[{name: x, backend: onnxruntime}]"), "modes[0]", "all of backend"),
        (GOOD.replace("[onnxruntime-cpu-fp32]", "[{name: x}]"), "modes[0].name", "of your own"),
        (
            GOOD.replace(
                "onnxruntime-cpu-fp32", "{name: tensorrt-int8, backend: tensorrt, device: gpu, precision: fp16}"
            ),
            "modes[0].name",
            "a name of your own",
        ),
        (GOOD.replace("[resnet_v1_50]", "[{name: a, zoo: b, file: c}]"), "models[0]", "exactly one of"),
        (GOOD.replace("[resnet_v1_50]", "[3]"), "models[0]", "a mapping with the keys"),
        (GOOD + "scopes: [device]\n", "scopes[0]", "one of engine, host, served"),
        (GOOD + "gpus: some\n", "gpus", '"all" or a list'),
        (GOOD + "measure: {window_seconds: 0}\n", "measure.window_seconds", "a number from 0.01"),
        (GOOD + "measure: {max_windows: 2}\n", "measure.max_windows", "an integer from 10"),
        (GOOD + "measure: {order: any}\n", "measure.order", "one of random, fixed"),
        (GOOD.replace("[resnet_v1_50]", "[{name: a, file: no.onnx}]"), "models[0].file", "a model file that is there"),
        (GOOD + "calibration: {percentile: 99}\n", "calibration.percentile", "no percentile unless"),
        (GOOD + "calibration: {dataset: d, synthetic: {}}\n", "calibration", "either dataset or synthetic"),
        (GOOD + "calibration: {method: magic}\n", "calibration.method", "one of entropy"),
    ],
)
def test_errors_name_file_key_and_expectation(text: str, key: str, expected: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        parse_suite(text, "my.yaml")
    assert re.match(rf"my.yaml line [1-9]\d*: {re.escape(key)}: ", raised.value.message)
    assert expected in raised.value.message


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("name: s\nmodels:\n  - a\nmodes:\n  - name: mine\n    precision: fp32\nbatches: [1]\n", "5"),
        (GOOD.replace("[1, 2]", "\n  - 1\n  - x"), "6"),
        (GOOD + "\nmeasure:\n  agreement: 2\n", "7"),
    ],
)
def test_errors_name_the_line_of_the_key(wrong: str, line: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        parse_suite(wrong, "my.yaml")
    assert raised.value.details["line"] == line, raised.value.message


def test_yaml_errors_name_the_line() -> None:
    with pytest.raises(InvalidArgumentError, match=r"my.yaml: line 5: key 'name' is given twice"):
        parse_suite(GOOD + "name: t\n", "my.yaml")
    with pytest.raises(InvalidArgumentError, match=r"my.yaml: line"):
        parse_suite("name: [", "my.yaml")


def test_a_suite_that_is_not_there() -> None:
    with pytest.raises(NotFoundError, match="frameworks, paper, quick"):
        load_suite("quik")
