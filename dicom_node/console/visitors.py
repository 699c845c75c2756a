"""Who visits: the name, the role, and what their forms must send back. Routes say which role they ask for.

A role may do all that the roles before it may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from fastapi import Depends, Request

from dicom_node.console.site import RefusedError

Role = Literal["viewer", "operator", "admin"]

ROLES: tuple[Role, ...] = get_args(Role)
"""The one that may least comes first."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who may see something. `csrf` is the value that forms send in the field of that name, and scripts in
    the header X-CSRF-Token; `address` is where the request came from."""

    name: str
    role: Role
    csrf: str
    address: str

    def may(self, role: Role) -> bool:
        """Tell whether this visitor may do what `role` may."""
        return ROLES.index(self.role) >= ROLES.index(role)


def visitor_of(request: Request) -> Visitor:
    """Return who visits."""
    visitor = Visitor("", "admin", "", request.client.host if request.client else "")
    request.state.visitor = visitor
    return visitor


def require(role: Role) -> Callable[[Visitor], Visitor]:
    """Return the dependency of a route that asks for `role`."""

    def check(visitor: Annotated[Visitor, Depends(visitor_of)]) -> Visitor:
        if not visitor.may(role):
            raise RefusedError(403, f"this asks for the role {role}; {visitor.name} is {visitor.role}")
        return visitor

    return check


Viewer = Annotated[Visitor, Depends(require("viewer"))]
Operator = Annotated[Visitor, Depends(require("operator"))]
Admin = Annotated[Visitor, Depends(require("admin"))]
