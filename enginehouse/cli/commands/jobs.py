"""jobs list, show, watch, retry, cancel, log."""

from __future__ import annotations

from typing import Annotated

import typer

from enginehouse.cli import completion
from enginehouse.cli.commands.engines import print_engines
from enginehouse.cli.context import connected
from enginehouse.cli.output import Json, cell, out, print_json, print_table, say, size
from enginehouse.cli.watch import follow
from enginehouse.client.values import JobView
from enginehouse.client.values.convert import id_of

app = typer.Typer(help="Optimizations that run or ran.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(help="A job's id or name.", autocompletion=completion.jobs)]


@app.command(
    "list", epilog='Example: enginehouse jobs list --state failed --filter "create_time>=2026-01-31T00:00:00Z"'
)
def list_(
    state: Annotated[str, typer.Option(help="Only jobs in it: queued, running, succeeded, failed or cancelled.")] = "",
    model: Annotated[
        str, typer.Option(help="Only jobs of this model (id or name).", autocompletion=completion.models)
    ] = "",
    filter: Annotated[  # noqa: A002
        str, typer.Option(help="More terms, joined by AND: done=false, create_time>=2026-01-31T00:00:00Z.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 20,
    json: Json = False,
) -> None:
    """List the jobs."""
    with connected() as client:
        terms = [f"state={state.upper()}"] if state else []
        terms += [f'model="{model if "/" in model else f"projects/{client.project}/models/{model}"}"'] if model else []
        jobs = client.jobs.list(" AND ".join([*terms, *([filter] if filter else [])]), limit=limit)
    if json:
        print_json(jobs)
        return
    rows = [(job.id, job.state, id_of(job.model), job.create_time, _seconds(job)) for job in jobs]
    print_table(
        ("JOB", "STATE", "MODEL", "CREATED", "SECONDS"), rows, empty="no jobs: `enginehouse optimize` starts one"
    )


@app.command()
def show(job: JobId, json: Json = False) -> None:
    """Show a job and its stages."""
    with connected() as client:
        view = client.jobs.get(job).metadata()
    if json:
        print_json(view)
        return
    out().print(f"{view.id}: {view.state}, model {id_of(view.model)}, created {cell(view.create_time)}")
    if view.error is not None:
        out().print(f"{view.error.reason}: {view.error.message}", markup=False)
    rows = [
        (
            stage.name,
            stage.state,
            stage.seconds if stage.took_seconds is None else stage.took_seconds,
            None if stage.peak_memory_bytes is None else size(stage.peak_memory_bytes),
            stage.message,
        )
        for stage in view.stages
    ]
    print_table(("STAGE", "STATE", "SECONDS", "PEAK MEMORY", "MESSAGE"), rows, empty="no stages yet")
    reused = sum(stage.state == "reused" for stage in view.stages)
    if reused:
        out().print(
            f"{reused} of {len(view.stages)} stages reused: their figures are of the runs that made the results"
        )


@app.command()
def watch(job: JobId, json: Json = False) -> None:
    """Follow a job to its end. Ctrl-C asks it to stop."""
    with connected() as client:
        view = follow(client.jobs.get(job))
    print_json(view) if json else print_engines(list(view.engines))


@app.command(epilog="Example: enginehouse jobs retry 5e1f --detach")
def retry(
    job: JobId,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return; `jobs watch` follows it.")] = False,
    json: Json = False,
) -> None:
    """Start a finished job's request again, as a new job. Stages that had succeeded are reused."""
    with connected() as client:
        again = client.jobs.retry(job)
        if detach:
            print_json({"name": again.name, "id": again.id}) if json else say(f"started {again.id}")
            return
        view = follow(again)
    print_json(view) if json else print_engines(list(view.engines))


@app.command()
def cancel(job: JobId) -> None:
    """Ask a job to stop."""
    with connected() as client:
        client.jobs.get(job).cancel()
    say(f"asked {job} to stop")


@app.command(epilog='Example: enginehouse jobs log 5e1f "build onnxruntime int8"')
def log(
    job: JobId,
    stage: Annotated[str | None, typer.Argument(help="The stage; the failed or last begun one when absent.")] = None,
) -> None:
    """Print the end of a stage's log."""
    with connected() as client:
        handle = client.jobs.get(job)
        print(handle.log(stage or _interesting(handle.metadata())), end="")


def _interesting(view: JobView) -> str:
    begun = [stage for stage in view.stages if stage.state != "pending"]
    failed = [stage for stage in begun if stage.state == "failed"]
    return (failed or begun or list(view.stages))[-1].name if view.stages else "freeze"


def _seconds(job: JobView) -> float | None:
    if job.start_time is None or job.end_time is None:
        return None
    return (job.end_time - job.start_time).total_seconds()
