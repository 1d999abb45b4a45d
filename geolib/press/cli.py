"""The command `geolib`."""

import json
import sys
from collections import Counter
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import geolib
from geolib.files import MissingExtra, write_whole

from .build import Build
from .notebook import PressError, discover, find_root
from .pool import Settings, press, refresh


class _Commands(TyperGroup):
    """Our commands, and those that chapters bring along by entry point.

    A chapter's command is imported only when it is called (or listed), so that the press
    neither imports a chapter's package nor waits for it.
    """

    def __init__(self, **known: Any) -> None:
        super().__init__(**known)
        self.commands.update(dict.fromkeys(sorted(_plugins())))  # type: ignore[arg-type]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in _plugins():
            single = typer.Typer(add_completion=False)
            single.command(cmd_name)(_plugins()[cmd_name].load())
            found = typer.main.get_command(single)
        return found

    def invoke(self, ctx: Any) -> Any:
        """Errors that a person can mend end a command with one sentence and code 1 or 2."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (PressError, OSError, ValueError, MissingExtra) as problem:
            text = str(problem)
            if isinstance(problem, OSError):  # a full disk, a folder, a port in use
                name = f": {problem.filename}" if problem.filename else ""
                text = f"{problem.strerror or problem}{name}"
            elif isinstance(problem, ValueError) and (
                ctx.invoked_subcommand not in _plugins()
            ):
                raise  # only a chapter's command is given values by a person
            typer.echo(f"geolib: {text}", err=True)
            raise typer.Exit(getattr(problem, "code", 1)) from None


def _plugins() -> dict[str, Any]:
    return {e.name: e for e in entry_points(group="geolib.commands")}


app = typer.Typer(
    cls=_Commands,
    help="Run, check and publish The Geometry of Learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option(help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"geolib {geolib.__version__}")
        raise typer.Exit


Chapters = Annotated[
    list[str] | None,
    typer.Argument(help="Chapters or notebooks (`chapter/NN-topic`); none means all."),
]
Profile = Annotated[str, typer.Option(help="small (CI), book (the site) or full.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Force = Annotated[bool, typer.Option(help="Run even what is unchanged.")]
Jobs = Annotated[int, typer.Option(min=1, help="Notebooks executed at a time.")]


@app.command()
def run(
    chapter: Chapters = None,
    profile: Profile = "small",
    device: Device = "auto",
    jobs: Jobs = 1,
    force: Force = False,
    timeout: Annotated[int, typer.Option(help="Seconds for one cell.")] = 900,
    scheduler: Annotated[
        str | None, typer.Option(help="Execute on a Dask cluster: tcp://host:8786.")
    ] = None,
) -> None:
    """Execute the notebooks whose text, parameters or code changed.

    Example: geolib run inverse_stability --profile book --jobs 2
    """
    settings = Settings(profile, device, jobs, force, timeout, scheduler)
    if not _pressed(find_root(), settings, chapter):
        raise typer.Exit(1)


def _pressed(root: Path, settings: Settings, wanted: list[str] | None = None) -> bool:
    """Run the notebooks and print how they ended; whether all ended well."""
    outcomes = press(discover(root, wanted), settings)
    last = {"profile": settings.profile}
    write_whole(root / "_build" / "last.json", json.dumps(last))
    count = Counter(o.status for o in outcomes)
    ended = f"{count['ok']} executed, {count['skipped']} unchanged"
    typer.echo(f"{ended}, {count['failed']} failed (profile {settings.profile})")
    for o in (o for o in outcomes if o.status == "failed"):
        partial_page = f"_build/{settings.profile}/failed/{o.name}.ipynb"
        typer.echo(f"FAILED {o.message}\n  partial notebook: {partial_page}", err=True)
    return not count["failed"]


@app.command()
def refs(chapter: Chapters = None, jobs: Jobs = 1, force: Force = False) -> None:
    """Rewrite the committed `.ipynb` pairs from a run of the small profile.

    Example: geolib refs inverse_stability
    """
    notebooks = discover(find_root(), chapter)
    changed = refresh(notebooks, jobs, force)
    for path in changed:
        typer.echo(f"rewritten {path.relative_to(find_root())}")
    typer.echo(f"{len(changed)} of {len(notebooks)} pairs changed")


@app.command()
def html(
    profile: Profile = "book",
    strict: Annotated[
        bool, typer.Option(help="Refuse a book that is not whole; render nothing.")
    ] = False,
) -> None:
    """Render the site from the executed notebooks; what is not whole is marked.

    Example: geolib html --profile book
    """
    if not _render(Build(find_root(), profile), strict):
        raise typer.Exit(1)


def _render(build: Build, strict: bool = False) -> bool:
    """Render the site and say where it is; whether all of it is well."""
    site = build.of_the_book("page_site")
    found = site.build_site(build, strict)
    for name, why in found.marked.items():
        typer.echo(f"MARKED {name}: {why}", err=True)
    typer.echo(f"The book: {build.site / 'index.html'}  (or `make serve`)")
    typer.echo(site.counted(found, len(discover(build.root))))
    return found.is_valid


@app.command()
def book(profile: Profile = "book", jobs: Jobs = 1, device: Device = "auto") -> None:
    """Execute what changed, then render the site, whatever failed.

    Example: geolib book --jobs 2
    """
    root = find_root()
    build = Build(root, profile)
    build.of_the_book("page_site").check_settings(root)  # not after minutes of running
    done = _pressed(root, Settings(profile, device, jobs))
    if not (_render(build) and done):
        raise typer.Exit(1)


@app.command()
def serve(
    profile: Profile = "book",
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 8000,
) -> None:
    """Serve the rendered site on this machine until interrupted.

    Example: geolib serve --port 8080
    """
    folder = Build(find_root(), profile).site
    if not (folder / "index.html").is_file():
        raise PressError(f"no site in {folder}: run `make book` first")
    handler = partial(_Quiet, directory=str(folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise PressError(f"port {port} cannot be served: {why}") from None
    with server, suppress(KeyboardInterrupt):
        typer.echo(f"http://127.0.0.1:{port}  (Ctrl-C ends it)")
        server.serve_forever()


@app.command()
def claims(
    profile: Annotated[
        str | None, typer.Option(help="Default: the profile of the last run.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Exit 1 on a failed, missing or repeated claim.")
    ] = False,
    keep: Annotated[
        bool, typer.Option(help="Keep this GPU run as a column of the published page.")
    ] = False,
) -> None:
    """Print the ledger of the last run and write it to `_build/claims.json`.

    Example: geolib claims --check
    """
    from .ledger import collect, print_table, write_json

    root = find_root()
    build = Build(root, profile or _remembered(root))
    found = collect(build, discover(root))
    write_json(found, root / "_build" / "claims.json")
    print_table(found)
    if keep:
        there = build.of_the_book("page_gpu")
        kept = there.save_device_ledger(found, root / there.GPU_LEDGER)
        typer.echo(f"{there.GPU_LEDGER}: {kept.sentence}")
    if check and not found.is_valid:
        raise typer.Exit(1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Time everything against its named peers, in a checkout.

    Example: geolib bench core --missing
    """
    root = find_root()
    if not (root / "benchmarks" / "run.py").is_file():
        raise PressError(f"bench: {root} has no benchmarks")
    sys.path.insert(0, str(root))
    from benchmarks.run import main

    raise typer.Exit(main(context.args))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def _remembered(root: Path) -> str:
    try:
        return str(json.loads((root / "_build" / "last.json").read_text())["profile"])
    except (OSError, ValueError, KeyError):
        raise PressError("claims: nothing was run yet; try `geolib run`") from None
