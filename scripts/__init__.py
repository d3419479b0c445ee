"""The bundle's Python, under the name that MONAI gives it."""

import sys
from pathlib import Path

# MONAI Label keeps several bundles in one process and unloads `scripts` alone before it loads the next one: the
# `transforms` of the bundle before would still be there, and its functions would be used by ours, or ours by the next.
# What was built of them keeps working, as their objects hold on to them.
_root = Path(__file__).resolve().parents[1]


def _drop_transforms(of_ours: bool) -> None:
    """Unload ``transforms`` if it is of this bundle, or if it is of another."""
    loaded = sys.modules.get("transforms")
    paths = [str(Path(path).resolve()) for path in getattr(loaded, "__path__", [])]
    if loaded is not None and (paths == [str(_root / "transforms")]) == of_ours:
        for name in [name for name in sys.modules if name.partition(".")[0] == "transforms"]:
            del sys.modules[name]


class _NextBundle:
    """Sees ``scripts`` being imported again, and makes room where it is that of another bundle."""

    root = _root

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "scripts":
            candidates = (Path(entry, "scripts") for entry in sys.path if Path(entry, "scripts").is_dir())
            if next(candidates, _root / "scripts").resolve() != _root / "scripts":
                _drop_transforms(of_ours=True)


_drop_transforms(of_ours=False)
sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "root", None) != _root]
sys.meta_path.insert(0, _NextBundle)
