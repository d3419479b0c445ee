"""Series of a DICOMweb server: found by UID, fetched slice by slice, and objects stored there, each once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pydicom
from pydicom.uid import UID

from scripts.command.files import whole
from scripts.command.optional import needed

__all__ = ["Server", "is_address"]

# It names the addresses of patients' studies.
logging.getLogger("dicomweb_client").setLevel(logging.WARNING)

_NEEDED = (
    "a DICOMweb server is asked through dicomweb-client, which is not installed: "
    "pip install -c constraints.txt '.[dicom]'"
)
_ANATOMY = ("MR", "CT", "PT")


def is_address(text: Any) -> bool:
    """Whether an input is an address of a server."""
    return isinstance(text, str) and text.lower().startswith(("http://", "https://"))


class Server:
    """A DICOMweb server.

    Args:
        address: of the server, of a study there (``.../studies/UID``), or of a series (``.../studies/UID/series/UID``).

    Attributes:
        address: of the server alone.
        study, series: UIDs in the address, else None.

    Raises:
        ValueError: when the address is none, or dicomweb-client is not installed.
    """

    def __init__(self, address: str) -> None:
        web = needed("dicomweb_client", _NEEDED)
        if urlsplit(address).username is not None:
            raise ValueError("the address holds a name or password; keep them in ~/.netrc, which is read")
        try:
            parsed = web.URI.from_string(address.rstrip("/"))
        except ValueError as error:
            raise ValueError(
                f"{address} is no address of a DICOMweb server, or of a study or series there "
                "(http://HOST/dicom-web/studies/UID/series/UID)"
            ) from error
        self.address: str = parsed.base_url
        self.study: str | None = parsed.study_instance_uid
        self.series: str | None = parsed.series_instance_uid
        self._client = web.DICOMwebClient(self.address)
        # With 2 and 4 s between them; the five that are usual keep a user waiting for half a minute.
        self._client.set_http_retry_params(max_attempts=3)

    def choose(self, series: str | None = None) -> str:
        """The address of one series of slices of anatomy of the study.

        Args:
            series: its UID; None: that of the address, or the only one of the study.

        Raises:
            ValueError: when there is not exactly one; lists them.
            OSError: when the server does not answer.
        """
        if self.study is None:
            raise ValueError(f"{self.address} is the address of a server; add that of a study: /studies/UID")
        series = series or self.series
        with self._asked():
            matches = self._client.search_for_series(self.study, fields=["NumberOfSeriesRelatedInstances"])
        known = {_first(one, "0020000E"): one for one in matches if _first(one, "00080060") in _ANATOMY}
        if series not in known and (series is not None or len(known) != 1):
            listed = "; ".join(
                f"{_first(one, '00201209') or 'unknown number'} of {_first(one, '00080060')}, series {uid}"
                for uid, one in known.items()
            )
            what = f"no series {series}" if series else f"{len(known)} series of slices, expected one"
            raise ValueError(
                f"study {self.study} holds {what}; choose one with --series UID; found: "
                f"{listed or 'none of MR, CT or PT'}"
            )
        return f"{self.address}/studies/{self.study}/series/{series or next(iter(known))}"

    def fetch(self, address: str, folder: Path) -> list[Path]:
        """Write the instances of a series into a folder, each named by its UID.

        Args:
            address: of the series.
            folder: made if absent.

        Raises:
            ValueError: when the server gives fewer than it lists, or one that is none.
            OSError: when it does not answer.
        """
        study, _, series = address.removeprefix(f"{self.address}/studies/").split("/")
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        with self._asked():
            listed = self._uids(study, series)
            for dataset in self._client.iter_series(study, series):
                uid = UID(str(dataset.get("SOPInstanceUID", "")))
                if not uid or not uid.is_valid:
                    raise ValueError(f"{address} gives an instance without a UID; export the series again")
                with whole(folder / f"{uid}.dcm") as place:
                    dataset.save_as(place, enforce_file_format=True)
                # An instance never changes under its UID: fetched again, it counts as the same file.
                os.utime(folder / f"{uid}.dcm", (0, 0))
                written.append(folder / f"{uid}.dcm")
        if missing := listed - {path.stem for path in written}:
            raise ValueError(f"{address} lists {len(listed)} instances and gave {len(listed - missing)}; try again")
        return written

    def store(self, files: Iterable[Path]) -> tuple[int, int]:
        """Store objects, one by one, that the server does not hold already.

        An object's UID follows from what it is of and by what it was made: one that is there is the same.

        Returns:
            how many were stored, and how many were there.

        Raises:
            OSError: when the server does not answer or takes one not.
        """
        stored = there = 0
        for path in files:
            dataset = pydicom.dcmread(path)
            with self._asked():
                if str(dataset.SOPInstanceUID) in self._uids(dataset.StudyInstanceUID, dataset.SeriesInstanceUID):
                    there += 1
                    continue
                answer = self._client.store_instances([dataset])
            if answer.get("FailedSOPSequence"):
                raise OSError(f"{self.address} did not take {path}; its log says why")
            stored += 1
        return stored, there

    def _uids(self, study: str, series: str) -> set[str]:
        instances: Sequence[Any] = self._client.search_for_instances(study, series, get_remaining=True)
        return {str(_first(one, "00080018")) for one in instances}

    @contextmanager
    def _asked(self) -> Iterator[None]:
        requests = needed("requests", _NEEDED)
        try:
            yield
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else "no status"
            raise OSError(f"{self.address} answers {code}; look at the UIDs and at your rights there") from error
        except requests.RequestException as error:
            raise OSError(f"{self.address} does not answer ({type(error).__name__}); is it running?") from error


def _first(item: Any, tag: str) -> Any:
    values = item.get(tag, {}).get("Value") or [None]
    return values[0]
