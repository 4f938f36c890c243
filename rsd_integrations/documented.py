"""What the fields of a pydantic model mean, shown where ``help()`` looks."""

from __future__ import annotations

import inspect
import textwrap
from typing import TypeVar

from pydantic import BaseModel

Model = TypeVar("Model", bound=type[BaseModel])


def documented(cls: Model) -> Model:
    """Class decorator: append the docstrings under a model's fields to its own, as "Attributes".

    Args:
        cls: a model with ``use_attribute_docstrings`` in its config; fields without one are left out.
    """
    model: type[BaseModel] = cls
    told = [
        textwrap.indent(f"{name}: {textwrap.indent(field.description, '    ').lstrip()}", "    ")
        for name, field in model.model_fields.items()
        if field.description
    ]
    if cls.__doc__ and told:
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__), "", "Attributes:", *told, ""])
    return cls
