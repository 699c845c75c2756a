"""The commands around the model: one study offline, the demonstration, training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.findings import FINDING_COLUMNS, finding_rows
from dicom_node.cli.options import ConfigOption, JsonOption
from dicom_node.cli.terminal import print_json, print_table
from dicom_node.clock import utc_now
from dicom_node.config import load_settings
from dicom_node.errors import NodeError


class Protocol(StrEnum):
    """What an evaluated model is given: image and report, image and phrase, the report with its phrases, or each."""

    free = "free"
    phrase = "phrase"
    forced = "forced"
    all = "all"


class Controls(StrEnum):
    """What is measured beside the model: nothing, a run without pixels, or every control."""

    none = "none"
    blind = "blind"
    all = "all"


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in (demo, ground, train, crossvalidate, ablate, evaluate):
        app.command()(command)


def demo(
    out: Annotated[Path, typer.Option("--out", file_okay=False, metavar="DIR", help="Where the results go.")] = Path(
        "demo-out"
    ),
    config: ConfigOption = None,
) -> None:
    """Show the whole node at work.

    A generated study goes in over DICOM; its results arrive in a stand-in archive, are checked and drawn.
    """
    from dicom_node.cli.demo import run_demo

    document = run_demo(load_settings(config).model, out)
    print_table(FINDING_COLUMNS, finding_rows(document["findings"]))
    typer.echo(f"\nThe results are in {out}: overlay.png, result.sr.dcm, result.gsps.dcm, findings.json")


def ground(
    image: Annotated[
        list[Path],
        typer.Option(
            "--image", exists=True, dir_okay=False, metavar="FILE", help="DICOM, PNG or JPEG; more files may follow."
        ),
    ],
    report: Annotated[Path, typer.Option(exists=True, dir_okay=False, metavar="FILE", help="DICOM SR or UTF-8 text.")],
    out: Annotated[Path, typer.Option(file_okay=False, metavar="DIR", help="Where the results go.")],
    more: Annotated[
        list[Path] | None, typer.Argument(exists=True, dir_okay=False, metavar="[FILE]...", help="More images.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ground one study offline, from files.

    Images and their report become SR, presentation states (DICOM images only), overlay.png and findings.json.
    """
    from dicom_node.cli.ground import ground_source, read_source

    settings = load_settings(config)
    with plain_model_errors():
        source = read_source([*image, *(more or [])], report)
        from grounding.checkpoint import load_predictor  # torch: seconds, which a file at fault need not wait

        predictor = load_predictor(settings.model.path, settings.model.device)
        outcome = ground_source(source, predictor, settings, utc_now, out)
    if as_json:
        print_json(outcome.document)
        return
    print_table(FINDING_COLUMNS, finding_rows(outcome.document["findings"]))
    typer.echo(f"\nWritten to {out}: {', '.join(outcome.files)}")
    for note in outcome.notes:
        typer.echo(note)


def train(
    recipe: Annotated[
        Path, typer.Option("--config", exists=True, dir_okay=False, metavar="FILE", help="The training recipe, YAML.")
    ],
) -> None:
    """Train a model by a recipe.

    grounding/configs/small.yaml is the recipe of the model that ships with the node.
    """
    import logging

    from grounding.training.train import train as run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with plain_model_errors():
        run(recipe)


def crossvalidate(
    recipe: Annotated[
        Path, typer.Option("--config", exists=True, dir_okay=False, metavar="FILE", help="A recipe with folds, YAML.")
    ],
    fold: Annotated[
        list[int] | None, typer.Option(min=0, metavar="K", help="Only this fold, counted from 0; may be repeated.")
    ] = None,
) -> None:
    """Train and score a model for each fold of patients.

    The table of the folds that are done is printed as Markdown; a fold that is done is not done again.
    """
    import logging

    from grounding.training.crossvalidation import crossvalidate as run
    from grounding.training.crossvalidation import pooled, table
    from grounding.training.recipe import read_recipe

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with plain_model_errors():
        chosen = read_recipe(recipe)
        run(chosen, range(chosen.real.folds or 1) if fold is None else fold)
        typer.echo(table(pooled(chosen)))


def ablate(
    plan: Annotated[
        Path, typer.Option("--config", exists=True, dir_okay=False, metavar="FILE", help="The ablation, YAML.")
    ],
    row: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this row; give more than one.")] = None,
    table: Annotated[bool, typer.Option("--table", help="Train nothing: print what is there.")] = False,
) -> None:
    """Train and compare the rows of an ablation.

    grounding/configs/ablation.yaml has the rows of the paper and their controls. Finished runs are skipped, and several
    processes may run the same file at once.
    """
    import logging

    from grounding.training.ablation import ablate as run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with plain_model_errors():
        typer.echo(run(plan, row or (), train=not table))


def evaluate(  # noqa: PLR0913 - one parameter per option
    manifest: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, metavar="FILE.jsonl", help="The grounding set.")
    ] = None,
    phantoms: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Instead of a set: N generated studies never trained on.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="DIR", help="Model folder, or `default` [default: model.path]")
    ] = None,
    protocol: Annotated[
        Protocol, typer.Option(help="What the model is given: image and report, or the phrase, or its place.")
    ] = Protocol.free,
    controls: Annotated[Controls, typer.Option(help="What is measured beside the model.")] = Controls.blind,
    prior_from: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE.jsonl", help="A set to take median boxes from."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(file_okay=False, metavar="DIR", help="Write figures and pictures there.")
    ] = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Leave out patients that the model was trained or chosen on.")
    ] = False,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only the rows of this part of the set, such as `test`.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on a grounding set.

    The same figures are measured for a control that sees no pixels.
    """
    from dicom_node.cli.evaluation import Wishes, evaluate_manifest, evaluate_phantoms, figure_table
    from grounding.evaluation.tables import markdown

    if (manifest is None) == (phantoms is None):
        raise typer.BadParameter("give either --manifest FILE.jsonl or --phantoms N")
    if as_json and as_markdown:
        raise typer.BadParameter("give either --json or --markdown")
    settings = load_settings(config).model
    path = model or settings.path
    wishes = Wishes(protocol.value, controls.value, tuple(prior_from or ()), report)
    with plain_model_errors():
        if manifest is not None:
            answer = evaluate_manifest(manifest, path, settings.device, wishes, unseen=unseen, split=split)
        else:
            answer = evaluate_phantoms(phantoms or 0, path, settings.device, wishes)
    if as_json:
        print_json(answer)
    elif as_markdown:
        typer.echo(markdown(answer), nl=False)
    else:
        print_table(*figure_table(answer))


@contextmanager
def plain_model_errors() -> Iterator[None]:
    """Turn what `grounding` raises about bad input into NodeError, which `main` prints as one sentence."""
    from grounding.sets.manifest import ManifestError
    from grounding.training.recipe import RecipeError
    from grounding.types import ModelError

    try:
        yield
    except (ManifestError, ModelError, RecipeError) as error:
        raise NodeError(str(error)) from error
