"""The configuration in force, for administrators: read only, secrets masked, section by section."""

from __future__ import annotations

import yaml
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from dicom_node.config import masked
from dicom_node.console.health import certificates
from dicom_node.console.site import Here
from dicom_node.console.visitors import Admin
from dicom_node.console.web import render

router = APIRouter(include_in_schema=False)


@router.get("/configuration")
def show_configuration(request: Request, here: Here, visitor: Admin) -> HTMLResponse:
    """Show the configuration."""
    sections = {
        name: yaml.safe_dump({name: values}, sort_keys=False, allow_unicode=True)
        for name, values in masked(here.settings).items()
    }
    return render(
        request, "configuration.html", sections=sections, certificates=list(certificates(here.settings)),
        now=here.clock(),
    )  # fmt: skip
