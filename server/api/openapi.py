"""How endpoints that read their own bodies appear in /openapi.json. It knows no endpoint."""

from collections.abc import Sequence

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REFERENCE = "#/components/schemas/{model}"


def json_body(model: type[BaseModel]) -> dict[str, object]:
    """For `openapi_extra`: a reference to the body's schema, which `DocumentedApp` puts where it points."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class DocumentedApp(FastAPI):
    """An application whose document also has the schemas of `bodies`."""

    bodies: Sequence[type[BaseModel]] = ()

    def openapi(self) -> dict[str, object]:
        """Made when first asked for, and kept."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        _, definitions = models_json_schema([(body, "validation") for body in self.bodies], ref_template=_REFERENCE)
        document = super().openapi()
        document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        return document
