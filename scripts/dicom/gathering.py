"""Series by their UIDs, each in a folder of links to its files, or fetched from a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.dicom.web import Server
from transforms.dicom import find_stacks, read_header
from transforms.reading import file_kind

__all__ = ["Gathered", "fetched", "gather_nameless", "gather_series"]


@dataclass(frozen=True)
class Gathered:
    """A series in a folder of its own.

    Attributes:
        folder: that holds it and nothing else.
        name: of its results: its UID, or a number where it has none.
        called: what it is called in tables and errors.
    """

    folder: Path
    name: str
    called: str


@contextmanager
def fetched(address: str, series: str | None = None) -> Iterator[Gathered]:
    """A series of a DICOMweb server in a temporary folder, deleted when the block ends.

    Args:
        address: of a study or series there, see `scripts.dicom.web.Server`.
        series: UID, where the address has none and the study holds several.
    """
    server = Server(address)
    chosen = server.choose(series)
    uid = chosen.rsplit("/", 1)[-1]
    with TemporaryDirectory(prefix="series") as made:
        server.fetch(chosen, Path(made) / uid)
        yield Gathered(Path(made) / uid, uid, chosen)


def gather_series(images: Sequence[Path], series: str, made: Path, nameless: bool = False) -> Gathered:
    """The files of one series, out of a folder that may hold others.

    Args:
        images: folders, whose files are looked through, or files.
        series: its UID.
        made: folder for the links.
        nameless: number the files.

    Raises:
        ValueError: when it is not there; lists what is.
    """
    files: list[Path] = []
    others: dict[str, int] = {}
    for image in images:
        for uid, paths in _by_uid(image).items():
            others[uid] = others.get(uid, 0) + len(paths)
            files += paths if uid == series else []
    if not files:
        listed = "; ".join(f"{count} files of series {uid or 'without UID'}" for uid, count in others.items())
        raise ValueError(f"no file is of series {series}; found: {listed or 'no DICOM series that is read here'}")
    return Gathered(_linked(files, made / series, nameless), series, f"series {series}")


def gather_nameless(images: Sequence[Path], made: Path) -> tuple[list[Gathered], list[tuple[str, str]]]:
    """Every image that is a series, under its UID, its files under numbers; and why others are not.

    Args:
        images: folders, or files of one series each.
        made: folder for the links.

    Returns:
        the series, and of each other image what it is called and the reason, neither of which says a name.
    """
    series: dict[str, Gathered] = {}
    others = []
    for number, image in enumerate(images, 1):
        called = f"input {number}"
        try:
            kind = file_kind(image)
        except ValueError:
            others.append((called, "it cannot be read"))
            continue
        if kind != "dicom":
            others.append((called, "it is no DICOM, so no object can refer to it"))
            continue
        uids = list(_by_uid(image))
        name = uids[0] if len(uids) == 1 and uids[0] else f"input-{number}"
        if name in series:
            others.append((called, f"it is series {name}, as another input is"))
            continue
        files = sorted(path for path in image.iterdir() if path.is_file()) if image.is_dir() else [image]
        series[name] = Gathered(_linked(files, made / name, True), name, name)
    return list(series.values()), others


def _by_uid(image: Path) -> dict[str, list[Path]]:
    """Files of each series of a folder, or of one file, by its UID, "" where it has none."""
    files: dict[str, list[Path]] = {}
    try:
        stacks = find_stacks(image)[0] if image.is_dir() else [[read_header(image)]]
    except ValueError:  # said by name when it is predicted
        return {}
    for headers in stacks:
        files.setdefault(headers[0].uid, []).extend(Path(header.path) for header in headers)
    return files


def _linked(files: Sequence[Path], folder: Path, numbered: bool) -> Path:
    folder.mkdir(parents=True)
    names = {path.name for path in files}
    for k, path in enumerate(files):
        name = f"{k:05d}.dcm" if numbered or len(names) < len(files) else path.name
        (folder / name).symlink_to(path.resolve())
    return folder
