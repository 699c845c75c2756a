"""What all sections of the configuration are."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    """A part of the file: unknown keys are refused, values do not change after start."""

    model_config = ConfigDict(extra="forbid", frozen=True)
