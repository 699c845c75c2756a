"""The `knowmvg` command: the composition root, which builds the parts and runs them.

Every command imports what it needs when it runs, so that `knowmvg --help`, the receiver and the job list start without
torch. What the node foresees ends as one sentence on standard error and exit status 1; anything else is a bug and shows
its traceback.
"""

from __future__ import annotations

import typer

from dicom_node.cli import administer, backup, datasets, deliveries, jobs, model, node, notify, samples, users
from dicom_node.errors import NodeError

app = typer.Typer(
    name="knowmvg",
    help="Ground the phrases of chest radiograph reports, and return them to the archive as SR and GSPS.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
node.add_commands(app)
model.add_commands(app)
administer.add_commands(app)
backup.add_commands(app)
samples.add_commands(app)
app.add_typer(jobs.app, name="jobs")
app.add_typer(deliveries.app, name="deliveries")
app.add_typer(notify.app, name="notify")
app.add_typer(users.app, name="users")
app.add_typer(users.tokens_app, name="tokens")
app.add_typer(datasets.app, name="dataset")


def main() -> None:
    """Run the command line of this process."""
    try:
        app(prog_name="knowmvg")
    except NodeError as error:
        typer.echo(f"knowmvg: {error}", err=True)
        raise SystemExit(1) from None
