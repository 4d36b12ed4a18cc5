"""One declaration an op: `SPECS` by their names, `STEMS` by the modules that have them."""

import importlib
import pkgutil

from specs.spec import SPECS, Spec

__all__ = ["SPECS", "STEMS", "Spec"]

MODULES = {
    found.name: importlib.import_module(f"specs.{found.name}")
    for found in pkgutil.iter_modules(__path__)
    if found.name != "spec"
}
# Other modules have what specs share.
STEMS: dict[str, tuple[Spec, ...]] = {
    name: module.SPECS for name, module in MODULES.items() if hasattr(module, "SPECS")
}
SPECS |= {spec.op: spec for specs in STEMS.values() for spec in specs}
