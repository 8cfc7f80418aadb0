"""Look up encoders by `arch.encoder_type`: the name of a module in kinds/ that defines one `DemoEncoder`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from models.encoders import kinds
from models.encoders.base import DemoEncoder


def encoder_types() -> list[str]:
    """All encoder names, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(kinds.__path__))


def encoder_class(name: str) -> type[DemoEncoder]:
    """The class of encoder `name`. Raises: ValueError that suggests the nearest name."""
    known = encoder_types()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"arch.encoder_type={name}: {hint}choose one of {', '.join(known)}")
    module = importlib.import_module(f"{kinds.__name__}.{name}")
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    return next(value for value in own if isinstance(value, type) and issubclass(value, DemoEncoder))
