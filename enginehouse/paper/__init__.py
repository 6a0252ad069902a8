"""The whitepaper "Deep Learning Inference on PowerEdge R7425" as data: what it ran, what it states and what it claims.

`claims.yaml` beside this file holds the facts, each of which stands in the paper's text or tables. Nothing here is a
result of
ours.
"""

from __future__ import annotations

from enginehouse.paper.facts import Claim, Paper, PaperMode, StatedValue, load_paper

__all__ = ["Claim", "Paper", "PaperMode", "StatedValue", "load_paper"]
