"""One declaration an op: `SPECS` by their names, `STEMS` by the modules that have them."""

import importlib
import pkgutil

from specs.spec import SPECS, Spec

__all__ = ["SPECS", "STEMS", "Spec"]

STEMS: dict[str, tuple[Spec, ...]] = {
    module.name: importlib.import_module(f"specs.{module.name}").SPECS
    for module in pkgutil.iter_modules(__path__)
    if module.name != "spec"
}
SPECS |= {spec.op: spec for specs in STEMS.values() for spec in specs}
