"""The bundle's Python, under the name that MONAI gives it."""

import sys
from pathlib import Path

# MONAI Label keeps several bundles in one process and unloads `scripts` alone before it loads the next one: the
# `transforms` of the bundle before would still be there, and its functions would be used by ours. What was built of
# them keeps working, as their objects hold on to them.
_own = str(Path(__file__).resolve().parents[1] / "transforms")
_loaded = sys.modules.get("transforms")
if _loaded is not None and [str(Path(path).resolve()) for path in getattr(_loaded, "__path__", [])] != [_own]:
    for _name in [name for name in sys.modules if name.partition(".")[0] == "transforms"]:
        del sys.modules[_name]
