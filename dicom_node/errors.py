"""The node's exceptions. Inside, raise; at the edges one table each turns them into an answer (ARCHITECTURE.md 4)."""

from __future__ import annotations


class NodeError(Exception):
    """Any failure the node foresees; its text names the offending thing and what to do."""


class TransientError(NodeError):
    """Trying the same again later may work: archive away, database locked, disk full."""


class AbsentError(TransientError):
    """Nobody answers there: not only this, but everything for that peer is to wait."""


class PermanentError(NodeError):
    """Trying the same again cannot work; the text is shown to people as the reason."""


class NotApplicableError(PermanentError):
    """Nothing is wrong with the node, but this study cannot be grounded: no text, no frontal view, no pixels."""


class InvalidInstanceError(NodeError):
    """Received bytes are no DICOM instance that can be filed (undecodable, or without its UIDs)."""


class SettingsError(NodeError):
    """The configuration is wrong; the text lists every fault with its path in the file and what is allowed."""


class SchemaError(NodeError):
    """The database schema is not the one this version of the code works with."""
