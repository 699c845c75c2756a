"""The pages: what they show comes from the job database, and from the storage where it is a film or a result."""

from __future__ import annotations

from fastapi import APIRouter

from dicom_node.console.pages import actions, configuration, destinations, job, jobs, overview, pictures, trail

router = APIRouter(include_in_schema=False)
for module in (actions, overview, jobs, job, pictures, destinations, trail, configuration):
    router.include_router(module.router)
