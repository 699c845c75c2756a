"""`knowmvg notify`: try the ways by which administrators are told."""

from __future__ import annotations

import typer

from dicom_node.cli.options import ConfigOption
from dicom_node.config import load_settings
from dicom_node.errors import NodeError

app = typer.Typer(help="The ways by which administrators are told.", rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Have `test` be named, although it is the only command so far."""


@app.command("test")
def test(config: ConfigOption = None) -> None:
    """Send a test message on every channel; exit status 1 if one does not take it."""
    settings = load_settings(config)
    from dicom_node.channels import ChannelError, make_channels, make_test
    from dicom_node.clock import utc_now

    channels = make_channels(settings)
    if not channels:
        raise NodeError("no channel is configured: see the section `notifications` of the configuration")
    failed = 0
    for channel in channels:
        try:
            channel.send(make_test(utc_now(), settings))
        except ChannelError as error:
            failed += 1
            typer.echo(f"FAIL  {channel.name:<16} {error}")
        else:
            typer.echo(f"ok    {channel.name:<16} took a test message")
    if failed:
        raise typer.Exit(1)
