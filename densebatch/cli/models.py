"""`densebatch models`: list, show, import and fetch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from densebatch.base.errors import InputError
from densebatch.base.files import digest
from densebatch.cli.logs import LoggedGroup
from densebatch.models import zoo


@click.group(cls=LoggedGroup, invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """List, show, import or fetch models; without a command, list them."""
    if context.invoked_subcommand is None:
        list_models.invoke(context)


@models.command("list")
def list_models() -> None:
    """List the models that have a name, and where they are."""
    from densebatch.models.model import bundled_path, list_bundled

    rows = [(name, "bundled", str(bundled_path(name))) for name in list_bundled()]
    rows += [(name, *_look_up(name)) for name in zoo.KNOWN]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, state, where in rows:
        click.echo(f"{name:<{widths[0]}}  {state:<{widths[1]}}  {where}")


def _look_up(name: str) -> tuple[str, str]:
    """State and place of a known model."""
    path = zoo.file_of(name)
    try:
        pin = zoo.read_pin(name)
        if pin is None or not path.is_file():
            return "not fetched", zoo.KNOWN[name].url
        changed = digest(path) != pin.sha256
    except InputError:
        changed = True
    # `show` and `fetch` say what is wrong
    return ("CHANGED" if changed else "fetched"), str(path)


@models.command()
@click.argument("name", metavar="NAME|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Show what a model is and how it is used, with its card."""
    from densebatch.models.model import count_weights, find_model

    model = find_model(name)
    facts: dict[str, Any] = asdict(model)
    card = facts.pop("card")
    facts["weights"] = count_weights(model)
    if as_json:
        click.echo(json.dumps({**facts, "card": card}, indent=1))
        return
    import yaml

    # through JSON: tuples become lists
    plain = json.loads(json.dumps({**facts, "card": card or None}))
    click.echo(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100), nl=False)


@models.command("import")
@click.argument("checkpoint")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="MODEL",
    help="Model to write, .safetensors.",
)
@click.option(
    "--um-per-px",
    type=click.FloatRange(0.001, 1000),
    metavar="UM",
    help="Pixel size that the network expects, in um: that of its training images after they were "
    "rescaled for it. Slides are then rescaled by pixel size rather than by diameter.",
)
@click.option(
    "--diameter",
    "diameter_px",
    type=click.FloatRange(0.1, 10_000),
    metavar="PX",
    help="Cell diameter that the network expects, for checkpoints that do not say it (30 is then "
    "taken; Cellpose's old nuclei models have 17).",
)
@click.option(
    "--patch",
    "patch_px",
    type=click.IntRange(64, 4096),
    metavar="PX",
    help="Side of a network patch [224; of Cellpose-SAM 256 and no other].",
)
@click.option(
    "--percentiles",
    nargs=2,
    type=click.FloatRange(0, 100),
    metavar="LOW HIGH",
    help="Of the tissue, that become 0 and 1 [1 99].",
)
@click.option(
    "--nuclei/--no-nuclei",
    default=None,
    help="Whether the network was trained with a nuclear channel [yes].",
)
@click.option("--licence", metavar="TEXT", help="Of the weights, for the card.")
@click.option("--source", metavar="TEXT", help="Where the weights come from, for the card.")
def import_checkpoint(checkpoint: str, output: Path, **card: Any) -> None:  # noqa: ANN401
    """Convert CHECKPOINT, a Cellpose or Cellpose-SAM network, to a model file with a card.

    The weights are read as tensors: no pickle is executed. They stay as they are, bit by bit.
    """
    from densebatch.models.convert import import_model

    model = import_model(checkpoint, output, **card)
    click.echo(f"model  {output}, sha256 {model.sha256}")


@models.command()
@click.argument("name")
@click.option(
    "--url", metavar="URL", help="Fetch the file from here, a mirror, instead of its own site."
)
def fetch(name: str, url: str | None) -> None:
    """Fetch a Cellpose or Cellpose-SAM network, or the paper's (train7), into the cache.

    The first fetch pins the file's sha256; later uses and fetches must find the same bytes. The
    cache is in $DENSEBATCH_CACHE, else in the platform's cache folder.
    """
    from densebatch.models.model import check_checkpoint, list_bundled

    if name in list_bundled():
        raise InputError(f"model {name!r} is bundled: there is nothing to fetch")
    kind = zoo.KNOWN[name].kind if name in zoo.KNOWN else ""
    pin, fresh = zoo.fetch(name, lambda path: check_checkpoint(path, kind), url)
    state = "fetched and pinned" if fresh else "already there, unchanged"
    click.echo(f"{name}  {state}, {pin.n_bytes / 1e6:.1f} MB, sha256 {pin.sha256}")
    click.echo(f"file   {zoo.file_of(name)}")
