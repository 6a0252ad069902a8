"""Run by the tools' own Python: validate objects against the schemas of several versions of Kubernetes, strictly.

Reads {"versions": [...], "objects": [...]} from standard input, prints a JSON list of what is wrong.
"""

from __future__ import annotations

import functools
import json
import sys

import kubernetes_validate
from kubernetes_validate import utils

# One object after the other needs the same few files.
utils.schema_contents = functools.cache(utils.schema_contents)


def main() -> None:
    request = json.load(sys.stdin)
    wrong = []
    for version in request["versions"]:
        for thing in request["objects"]:
            try:
                used = kubernetes_validate.validate(thing, version, strict=True)
            except kubernetes_validate.SchemaNotFoundError as error:
                wrong.append(f"{version} {thing['kind']}/{thing['metadata']['name']}: unknown kind: {error}")
            except kubernetes_validate.ValidationError as error:
                wrong.append(f"{version} {thing['kind']}/{thing['metadata']['name']}: {error}")
            else:
                if not used.startswith(version):
                    wrong.append(f"{version} has no schemas here: {used} was used")
    json.dump(wrong, sys.stdout)


if __name__ == "__main__":
    main()
