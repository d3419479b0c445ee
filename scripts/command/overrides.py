"""Config files and the values given beside them on a command line: merged, checked for misspelled ids, compared."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow, run
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from scripts.command.config_files import META, plain, read_config

__all__ = ["BundleCommand", "bundle_command", "check_overrides", "differing", "merged_config", "parse_overrides"]

# Arguments of MONAI's commands themselves; all others are overrides.
OWN_ARGUMENTS = {
    name
    for function in (run, ConfigWorkflow.__init__)
    for name, parameter in inspect.signature(function).parameters.items()
    if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
} | {"workflow_name"}
# Ids of files and folders that do not end in _dir, _file or _root.
PATHS = {"input", "foreground", "weights", "initial_weights", "heatmaps"}
# What may be another when a stage is run again: where things lie, where and how fast it is computed, what is shown.
# Several processes train on the batches of one (configs/multi_gpu_train.yaml), hence train#trainer#network.
FREE = {
    *("imports", "bundle_root", "dataset_dir", "datalist_file", "run_dir", "stage_dir", "cache_dir", "output_dir"),
    *("tracking_uri", "experiment_name", "run_name", "save_execute_config", "displayable_configs"),
    *("device", "backend", "image_interval", "train#trainer#network"),
    *(f"{part}#dataset#{key}" for part in ("train", "validate") for key in ("cache_dir", "num_workers", "progress")),
    *(f"{part}#dataloader#num_workers" for part in ("train", "validate")),
}


@dataclass
class BundleCommand:
    """What a ``python -m monai.bundle run`` command line gives.

    Attributes:
        files: config files, merged in order.
        values: overrides by config id.
        texts: the same as they stand on the command line.
        tracking: whether experiment tracking is asked for.
    """

    files: list[str]
    values: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    tracking: bool = False

    def check(self) -> None:
        """Refuse misspelled overrides, and values that MONAI's command line reads otherwise than they were meant.

        Raises:
            ValueError: when an id is in none of the files (names the nearest), a value holds a "#", or a mapping would
                replace a section of the config.
        """
        for name, text in self.texts.items():
            if "#" in text and not text.startswith(("$", "@", "%")):
                raise ValueError(
                    f"--{name} {text}: MONAI's command line cannot take # in a value; python -m scripts can, "
                    "or choose another name"
                )
        allowed = set(DEFAULT_MLFLOW_SETTINGS["configs"]) if self.tracking else ()
        config = read_config(self.files).get()
        check_overrides(config, self.values, allowed)
        check_sections(config, self.values)


def parse_overrides(tokens: Sequence[str]) -> dict[str, Any]:
    """``--id value`` pairs as config values, typed as ``monai.bundle run`` types them.

    Raises:
        ValueError: when a token is not of this form.
    """
    values: dict[str, Any] = {}
    rest = list(tokens)
    while rest:
        name, sep, value = rest.pop(0).partition("=")
        if not name.startswith("--") or (not sep and not rest):
            raise ValueError(f"expected --id value, got {name!r}")
        name = name[2:]
        values[name] = _typed(name, value if sep else rest.pop(0))
    return values


def names_path(name: str) -> bool:
    """Whether a config id is that of a file or folder."""
    last = re.split("#|::", name)[-1]
    return last.endswith(("_dir", "_file", "_root")) or last in PATHS


def _typed(name: str, text: str) -> Any:
    """A value as ``monai.bundle run`` types it; but a path stays text, and "#" begins no comment.

    >>> _typed("run_dir", "20241128"), _typed("input", "['a','b']"), _typed("seed", "3"), _typed("run_name", "exp#2")
    ('20241128', ['a', 'b'], 3, 'exp#2')
    """
    value = DefaultParseValue(text)
    if names_path(name) and not isinstance(value, (list, tuple, str, type(None))):
        return text
    if not isinstance(value, str) or text[:1] in "'\"$@%":
        return value
    return str(Path(text).expanduser()) if names_path(name) and text.startswith("~") else text


def bundle_command(argv: Sequence[str]) -> BundleCommand | None:
    """A ``python -m monai.bundle run`` command line, read as Fire reads it; None for another program.

    Args:
        argv: of the process, the program first.
    """
    if not argv or Path(argv[0]).parts[-3:-1] != ("monai", "bundle") or not {"run", "run_workflow"} & set(argv[1:2]):
        return None
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    tokens = list(argv[2:])
    while tokens:
        token = tokens.pop(0)
        if token == "--":  # what follows is Fire's own
            break
        if not _is_flag(token):
            continue  # run_id and so on by position
        name, sep, value = token.lstrip("-").partition("=")
        if not sep:
            value = tokens.pop(0) if tokens and not _is_flag(tokens[0]) else "True"
        texts[name.replace("-", "_")] = value
        values[name.replace("-", "_")] = DefaultParseValue(value)
    if values.get("args_file") is not None:
        values = {**ConfigParser.load_config_file(str(values["args_file"])), **values}
    run_args = {name: values.pop(name) for name in OWN_ARGUMENTS & values.keys()}
    texts = {name: text for name, text in texts.items() if name not in run_args}
    files = run_args.get("config_file")
    if files is None:
        return None
    named = [files] if isinstance(files, (str, Path)) else list(files)
    return BundleCommand([str(file) for file in named], values, texts, run_args.get("tracking") is not None)


def _is_flag(token: str) -> bool:
    return token.startswith("--") or re.match("-[a-zA-Z]", token) is not None


def merged_config(config_files: Sequence[str | Path], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Config files merged in order, then single values replaced; expressions stay as they are written.

    Raises:
        FileNotFoundError: when a file is not there.
        ValueError: when an override is in none of the files (names the nearest id), or a file is no config.
    """
    check_overrides(read_config(config_files).get(), overrides or {})
    parser = read_config(config_files, overrides)
    parser.resolve_macro_and_relative_ids()
    return {key: plain(value) for key, value in parser.get().items() if key != META}


def check_overrides(config: Mapping[str, Any], ids: Collection[str], allowed: Collection[str] = ()) -> None:
    """Refuse ids that address nothing.

    An id may add an argument to a component (a mapping with ``_target_``) and an entry to a mapping of plain values;
    everything before its last part has to be there.

    Args:
        config: merged, without the overrides.
        ids: of the overrides; parts are divided by "#" or "::".
        allowed: further ids.

    Raises:
        ValueError: when one is not there; names it and the nearest that is.
    """
    for name in ids:
        parts = name.replace("#", "::").split("::")
        if name in allowed or parts[0] == META:
            continue
        here: Any = config
        for depth, part in enumerate(parts):
            if isinstance(here, (list, tuple)):
                if not part.isdigit() or int(part) >= len(here):
                    raise ValueError(f"no {name!r} in the config: {'#'.join(parts[:depth])} is a list of {len(here)}")
                here = here[int(part)]
                continue
            if not isinstance(here, Mapping):
                raise ValueError(f"no {name!r} in the config: {'#'.join(parts[:depth])} is {here!r} and has no parts")
            if part in here:
                here = here[part]
                continue
            if depth and depth == len(parts) - 1 and not _is_section(here):
                break
            raise ValueError(_unknown(name, parts[:depth], part, [str(key) for key in here]))


def check_sections(config: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse a mapping, as of an args file, that would replace a section of components by a few of its values.

    Raises:
        ValueError: names what would be lost.
    """
    for name, value in values.items():
        now = config.get(name)
        if isinstance(value, Mapping) and isinstance(now, Mapping) and (_is_section(now) or "_target_" in now):
            lost = [key for key in now if key not in value]
            if lost:
                first = next(iter(value), "id")
                raise ValueError(
                    f"--{name}: a mapping replaces all of {name!r}, {lost[0]!r} too; give its parts by id, "
                    f"as --{name}#{first}"
                )


def _is_section(mapping: Mapping[str, Any]) -> bool:
    """Whether a mapping only holds components, such as "train": what is added to it would be read by nobody."""
    return "_target_" not in mapping and any(isinstance(v, Mapping) and "_target_" in v for v in mapping.values())


def _unknown(name: str, before: list[str], part: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(part, keys, n=1)
    prefix = "".join(f"{p}#" for p in before)
    hint = f"nearest: --{prefix}{near[0]}" if near else "the values that can be changed stand in the config files"
    return f"--{name}: the config has no {prefix + part!r}; {hint}"


def differing(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Ids whose values differ between two merged configs and can change the result of a training, sorted.

    Args:
        saved: as read from a config.yaml.
        now: as it would be saved.
    """
    return sorted(_differing(saved, yaml.safe_load(yaml.safe_dump(dict(now))), ""))


def _differing(saved: Any, now: Any, place: str) -> list[str]:
    if place in FREE or saved == now:
        return []
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        prefix = f"{place}#" if place else ""
        absent = object()
        return [
            name
            for key in {*saved, *now}
            for name in _differing(saved.get(key, absent), now.get(key, absent), f"{prefix}{key}")
        ]
    return [place]
