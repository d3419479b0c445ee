"""The largest image that is read, to the voxel: exactly the limit passes, one more is refused."""

from __future__ import annotations

import pytest

from transforms.limits import ReadLimits, Refused, TooLarge

LIMITS = ReadLimits(pixels=12, voxels=24, side=7)


@pytest.mark.parametrize(
    ("check", "largest", "larger", "unit"),
    [
        pytest.param(LIMITS.check_picture, (4, 3), (13, 1), "13 x 1 pixels, at most 12", id="pixels by one"),
        pytest.param(LIMITS.check_picture, (7, 1), (8, 1), "7 along one axis", id="side of a picture"),
        pytest.param(LIMITS.check_volume, (2, 3, 4), (5, 5, 1), "5 x 5 x 1 voxels, at most 24", id="voxels by one"),
        pytest.param(LIMITS.check_volume, (1, 1, 7), (1, 1, 8), "7 along one axis", id="side of a volume"),
        pytest.param(LIMITS.check_volume, (1, 1, 1, 7), (1, 1, 1, 8), "7 along one axis", id="channels of a volume"),
    ],
)
def test_exactly_the_limit_is_read_and_one_more_is_refused(check, largest, larger, unit):
    check("a.nii", largest)
    with pytest.raises(TooLarge, match=unit):
        check("a.nii", larger)


def test_a_picture_is_limited_by_its_pixels_and_a_volume_by_its_voxels():
    LIMITS.check_volume("a.nii", (4, 4, 1))
    with pytest.raises(TooLarge, match="4 x 4 pixels"):
        LIMITS.check_picture("a.png", (4, 4))


@pytest.mark.parametrize("shape", [(), (0, 4, 4), (4, 0, 4), (4, 4, -1)])
def test_a_volume_without_voxels_is_refused(shape):
    LIMITS.check_volume("a.nii", (1, 1, 1))
    with pytest.raises(Refused, match=r"says that its shape is .*, expected sizes of at least 1; export it again"):
        LIMITS.check_volume("a.nii", shape)
