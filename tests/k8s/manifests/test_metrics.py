"""What alerts, dashboard and autoscalers ask for is what the services serve."""

from __future__ import annotations

import re

import yaml

from tests.k8s.manifests.rendering import CHART, K8S, ROOT


def _metric_names() -> set[str]:
    """Metrics that rules, dashboard and autoscalers ask for."""
    texts = [
        (CHART / "files" / "rules.yaml").read_text(),
        (CHART / "files" / "dashboard.json").read_text(),
        (K8S / "components/keda/scaled-object.yaml").read_text(),
        (K8S / "components/autoscaling/prometheus-adapter.yaml").read_text(),
    ]
    return set(re.findall(r"\b(?:nv_\w+|DCGM_\w+|enginehouse_\w+)", "\n".join(texts)))


def test_metrics_that_are_asked_for_are_served() -> None:
    recorded = {"enginehouse_inference_queue_seconds"}  # by the adapter's rule
    sources = "\n".join(path.read_text() for path in (ROOT / "services").rglob("*.py"))
    names = _metric_names() - recorded
    assert len(names) > 15
    missing = {
        name
        for name in names
        if not any(f'"{known}"' in sources for known in (name, name.removesuffix("_total")))
        and not _made_up(name, sources)
    }
    assert missing == set()


def _made_up(name: str, sources: str) -> bool:
    """A name that the service puts together from a prefix and a word."""
    for prefix in ("enginehouse_host_", "DCGM_FI_DEV_"):
        if name.startswith(prefix) and prefix in sources and f'"{name.removeprefix(prefix)}"' in sources:
            return True
    return False


def test_alerts_say_what_to_do() -> None:
    rules = [
        rule for group in yaml.safe_load((CHART / "files/rules.yaml").read_text())["groups"] for rule in group["rules"]
    ]
    for rule in rules:
        if "alert" in rule:
            assert rule["alert"].startswith("Enginehouse")
            assert rule["annotations"].keys() == {"summary", "description"}
            assert rule["labels"]["severity"] in ("warning", "critical")
