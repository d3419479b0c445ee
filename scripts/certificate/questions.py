"""What a model is asked: every picture of every test, tumor and control, made one at a time."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scripts.certificate.cases import Case, Host, hosts_for
from scripts.certificate.harmless import HARMLESS
from scripts.certificate.probes import PROBES, other_of
from scripts.interventions.infills import HELD_OUT_INFILLS
from scripts.interventions.insertion import HELD_OUT_BLENDS
from scripts.interventions.interventions import Outcome, fade, remove, swap, transplant
from scripts.interventions.regions import Image, Mask, NoRoom

FADES = (0.25, 0.5)
# How of a removal and a transplant between two drawings of one head, see `scripts.certificate.exact`.
EXACT = "exact"


@dataclass(frozen=True)
class Question:
    """One picture to be answered.

    Args:
        test: "as is", "removal", "transplant", "swap", "fade", "harmless" or "probe".
        how: of the test: infill, blend, level or change; "" where there is one way only.
        control: whether it is the control.
        case: the tumor that the test is about; of "as is", "harmless" and "probe" the picture's own case.
        before: name of the case whose picture was changed.
        kind: the honest class of the picture.
        picture: float32 (C, H, W[, D]).
        place: where the tumor is, or was, or would be: what masks and maps are measured against.
        region: what was changed; None for nothing.
    """

    test: str
    how: str
    control: bool
    case: Case
    before: str
    kind: int
    picture: Image
    place: Mask | None
    region: Mask | None = None

    def slim(self) -> Question:
        """The same without its picture, for what is counted afterwards."""
        none = np.zeros((0, 0, 0), np.float32)
        return replace(self, picture=none, place=None, region=None)

    @property
    def key(self) -> tuple[str, str, bool, str]:
        """What no other question has."""
        return self.test, self.how, self.control, self.case.name


@dataclass
class Plan:
    """All questions about some tumors and some healthy heads.

    Args:
        tumors: with masks.
        healthy: heads without a tumor.
        infills, blends: ways of the removal and of the transplant; the defaults are kept out of all training.
        harmless: harmless changes are asked about for so many cases of either kind.
        probes: probes are asked about for so many cases of either kind.

    Attributes:
        left_out: how often a question could not be made, by (test, reason).
    """

    tumors: Sequence[Case]
    healthy: Sequence[Case]
    infills: Sequence[str] = ()
    blends: Sequence[str] = HELD_OUT_BLENDS
    harmless: int = 25
    probes: int = 20
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if not self.infills:
            self.infills = HELD_OUT_INFILLS[:2]
        # An infill takes tissue of the same head: the first of the list heals where one is enough.
        self.heal = self.infills[0]
        self._places = {case.name: k for k, case in enumerate(self.tumors)}
        self.hosts = hosts_for(self.tumors, self.healthy)
        others = [[c for c in self.tumors if c.kind != tumor.kind] for tumor in self.tumors]
        self.strangers = [hosts_for([t], o)[0] for t, o in zip(self.tumors, others, strict=True)]

    def __iter__(self) -> Iterator[Question]:
        for case in (*self.tumors, *self.healthy):
            yield Question("as is", "", False, case, case.name, case.kind, case.image, case.mask)
        for case in (*self.tumors[: self.harmless], *self.healthy[: self.harmless]):
            for name, change in HARMLESS.items():
                picture = change(case.image)
                if np.array_equal(picture, case.image):
                    self.left_out["harmless", f"{name}: nothing changes in this picture"] += 1
                    continue
                yield Question("harmless", name, False, case, case.name, case.kind, picture, None)
        for cases in (self.tumors, self.healthy):
            for turn, case in enumerate(cases[: self.probes]):
                yield from self._probed(case, turn)
        for tumor in self.tumors:
            yield from self.about(tumor)

    def _probed(self, case: Case, turn: int) -> Iterator[Question]:
        everybody = [*self.tumors, *self.healthy]
        for control in (False, True):
            other = other_of(case, everybody, control, turn)
            if other is None:
                self.left_out["probe", f"no picture of {'the same' if control else 'the other'} side"] += 1
                continue
            for name, change in PROBES.items():
                try:
                    picture = change(case, other)
                except ValueError as reason:
                    self.left_out["probe", f"{name}: {reason}"] += 1
                    continue
                yield Question("probe", name, control, case, case.name, case.kind, picture, None)

    def count(self) -> int:
        """How many questions there are at most."""
        harmless = min(self.harmless, len(self.tumors)) + min(self.harmless, len(self.healthy))
        probes = 2 * len(PROBES) * (min(self.probes, len(self.tumors)) + min(self.probes, len(self.healthy)))
        ways = 2 * (len(self.infills) + len(FADES) + len(self.blends) + 1)
        return len(self.tumors) * (1 + ways) + len(self.healthy) + len(HARMLESS) * harmless + probes

    def host_of(self, tumor: Case) -> Case | None:
        """The healthy head that a tumor is moved into."""
        host = self.hosts[self._places[tumor.name]]
        return host.case if host else None

    def about(self, tumor: Case) -> Iterator[Question]:
        """All tests of one tumor."""
        place = self._places[tumor.name]
        yield from self._of(tumor, self.hosts[place], self.strangers[place])

    def _of(self, tumor: Case, host: Host | None, stranger: Host | None) -> Iterator[Question]:
        mask = tumor.donor().mask
        inputs = tumor.image, mask, tumor.foreground
        for control in (False, True):
            for how in self.infills:
                for made in self._made(
                    "removal",
                    lambda: [remove(*inputs, _rng(tumor), how, tumor.margin, control)],  # noqa: B023
                ):
                    yield self._question("removal", how, control, tumor, tumor, made, mask)
            faded = self._made("fade", lambda: fade(*inputs, _rng(tumor), FADES, self.heal, tumor.margin, control))  # noqa: B023
            for level, made in zip(FADES, faded, strict=False):
                yield self._question("fade", f"{level:g}", control, tumor, tumor, made, mask)
        yield from self._moved(tumor, host, stranger)

    def _moved(self, tumor: Case, host: Host | None, stranger: Host | None) -> Iterator[Question]:
        for how in self.blends:
            if host is None:
                self.left_out["transplant", "no healthy head of another group shows the same view"] += 1
                continue
            head, donor = host.case, host.donor(tumor)
            pair: list[list[Outcome]] = [
                self._made(
                    "transplant",
                    lambda: [transplant(head.image, head.foreground, donor, _rng(tumor), how, head.margin, c)],  # noqa: B023
                )
                for c in (False, True)
            ]
            if all(pair):  # the control stands for the same place and size, so neither is asked without the other
                place = pair[0][0].mask
                for k, outcomes in enumerate(pair):
                    yield self._question("transplant", how, bool(k), tumor, head, outcomes[0], place)
        if stranger is None:
            self.left_out["swap", "no tumor of another class and group shows the same view"] += 1
            return
        home, donor = stranger.case.donor(), stranger.donor(tumor)
        for control in (False, True):
            case = stranger.case if control else tumor
            for made in self._made(
                "swap",
                lambda: [
                    swap(*_arrays(home), donor, _rng(tumor), self.heal, self.blends[0], stranger.case.margin, control)  # noqa: B023
                ],
            ):
                question = self._question("swap", "", control, tumor, stranger.case, made, made.mask)
                yield replace(question, kind=case.kind)

    def _made(self, test: str, make: Callable[[], list[Outcome]]) -> list[Outcome]:
        try:
            return make()
        except NoRoom as reason:
            self.left_out[test, str(reason)] += 1
            return []

    def _question(
        self, test: str, how: str, control: bool, case: Case, before: Case, made: Outcome, place: Mask
    ) -> Question:
        kind = {"none": 0, "host": before.kind, "donor": case.kind}[made.answer]
        # A file holds no values beyond its range, of which the two pictures together tell most.
        low, high = min(case.image.min(), before.image.min()), max(case.image.max(), before.image.max())
        picture = np.clip(made.image, low, high)
        return Question(test, how, control, case, before.name, kind, picture, place, made.region)


def _rng(case: Case) -> np.random.Generator:
    """The same state for a tumor and its control, another for each case."""
    return np.random.default_rng(zlib.crc32(case.name.encode()))


def _arrays(donor) -> tuple[Image, Mask, Mask]:  # type: ignore[no-untyped-def]
    return donor.image, donor.mask, donor.foreground
