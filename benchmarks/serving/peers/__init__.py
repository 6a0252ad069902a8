"""One program for each peer, run in that peer's own environment: `python {peer}.py MODELS ANNOUNCE`."""
