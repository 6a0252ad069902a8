"""store usage, gc, fsck."""

from __future__ import annotations

from typing import Annotated

import typer

from enginehouse.cli.context import connected
from enginehouse.cli.errors import FAILURE
from enginehouse.cli.output import Json, print_json, print_table, say, size
from enginehouse.client.values.store import StoreFinding, StoreTotals

app = typer.Typer(help="The store under models, datasets and engines.", no_args_is_help=True)


@app.command()
def usage(json: Json = False) -> None:
    """Show what the store holds."""
    with connected() as client:
        found = client.store.usage()
    if json:
        print_json(found)
        return
    rows = (
        ("models", found.model_bytes),
        ("datasets", found.dataset_bytes),
        ("engines", found.engine_bytes),
        ("timing caches", found.timing_cache_bytes),
        ("stage results", found.stage_result_bytes),
        ("garbage", found.garbage_bytes),
        (f"all {found.blobs} blobs", found.bytes),
        ("unfinished uploads", found.unfinished_upload_bytes),
        ("quarantine", found.quarantined_bytes),
    )
    print_table(("WHAT", "SIZE"), [(what, size(count)) for what, count in rows], empty="")


@app.command(epilog="Example: enginehouse store gc --dry-run")
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    minimum_age: Annotated[
        float | None, typer.Option(min=0, help="Seconds; nothing younger goes. An hour when absent.")
    ] = None,
    unused_days: Annotated[
        float | None,
        typer.Option(
            min=0, help="Results of stages not used for so many days go too. The server's setting when absent."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Remove what nobody names and no job uses. Engines stay: delete those by name."""
    unused = None if unused_days is None else unused_days * 86400
    with connected() as client:
        found = client.store.collect_garbage(dry_run=dry_run, minimum_age=minimum_age, stage_results_unused_for=unused)
    if json:
        print_json(found)
        return
    say(
        f"{'would remove' if dry_run else 'removed'} {found.blobs} blobs ({size(found.bytes)}), "
        f"{found.stage_results} stage results, {found.finished_operations} operations, "
        f"{found.unfinished_uploads} unfinished uploads, {found.quarantined} quarantined blobs"
    )


@app.command(epilog="Exit status: 1 when something is wrong that was not repaired.")
def fsck(
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Quarantine damaged blobs; forget stage results and timing caches that lack one."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Read every blob again and compare it with its digest, and every resource with its blobs."""
    findings: list[StoreFinding] = []
    totals: StoreTotals | None = None
    with connected() as client:
        for found in client.store.check(repair=repair):
            if isinstance(found, StoreTotals):
                totals = found
                continue
            findings.append(found)
            if not json:
                print(f"{found.kind}: {found.digest} {found.resource}: {found.message}".replace("  ", " "))
    left = sum(not found.repaired for found in findings)
    if json:
        print_json({"findings": findings, "totals": totals})
    elif totals is not None:
        say(
            f"checked {totals.blobs} blobs ({size(totals.bytes)}) and {totals.engines} engines: "
            f"{totals.findings} findings, {len(findings) - left} repaired"
        )
    if left:
        raise typer.Exit(FAILURE)
