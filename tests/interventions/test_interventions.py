"""Interventions against paired phantoms: the same head with and without its tumor is the truth."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from scripts.interventions import infill as infill_module
from scripts.interventions.blend import BLENDS
from scripts.interventions.infills import HELD_OUT_INFILLS, INFILLS, TRAINING_INFILLS
from scripts.interventions.insertion import HELD_OUT_BLENDS, TRAINING_BLENDS, Donor, tissue_scale
from scripts.interventions.interventions import fade, remove, scale, swap, translate, transplant
from scripts.interventions.likeness import Turn
from scripts.interventions.regions import NoRoom, grow, inner
from tests.interventions.heads import pair

# Infills that put tissue of another place into the hole.
COPIED = ("patch", "mirror", "poisson", "learned")


def random(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def every(head: Donor, host: Donor, control: bool = False):
    """Each intervention on phantoms: (name, the picture before, its foreground, outcome)."""
    own = head.image, head.mask, head.foreground
    for how in INFILLS:
        yield f"remove {how}", head, remove(*own, random(), how, control=control)
    for how in BLENDS:
        yield f"transplant {how}", host, transplant(host.image, host.foreground, head, random(), how, control=control)
    yield "swap", head, swap(*own, pair(9)[0] if head.image.ndim == 3 else head, random(), control=control)
    yield "translate", head, translate(*own, random(), control=control)
    yield "scale", head, scale(*own, random(), control=control)
    for level, outcome in zip((0.0, 0.25, 0.5, 0.75, 1.0), fade(*own, random(), control=control), strict=True):
        yield f"fade {level}", head, outcome


@pytest.mark.parametrize("control", [False, True])
def test_only_the_region_changes_and_air_stays_air(control):
    for name, before, after in every(pair(1)[0], pair(2)[1], control):
        outside = ~after.region
        np.testing.assert_array_equal(after.image[:, outside], before.image[:, outside], err_msg=name)
        assert not after.image[:, ~before.foreground].any(), name
        assert after.image[:, before.foreground].all(), name
        assert after.image.dtype == np.float32, name
        assert not (after.region & ~before.foreground).any(), name
        assert not (after.mask & ~before.foreground).any(), name


def test_the_same_generator_gives_the_same_picture_and_another_another():
    first, again = (list(every(pair(1)[0], pair(2)[1])) for _ in range(2))
    for (name, _, one), (_, _, two) in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.image, two.image, err_msg=name)
    head = pair(1)[0]
    other = remove(head.image, head.mask, head.foreground, random(4))
    assert not np.array_equal(other.image, first[0][2].image)


def test_volumes_of_two_channels_are_changed_like_pictures():
    head, host = pair(1, slices=12, channels=2)[0], pair(2, slices=12, channels=2)[1]
    for name, before, after in every(head, host):
        np.testing.assert_array_equal(after.image[:, ~after.region], before.image[:, ~after.region], err_msg=name)
        assert not after.image[:, ~before.foreground].any(), name


def test_honest_answers_and_masks():
    answers = {name: (out.answer, bool(out.mask.any())) for name, _, out in every(pair(1)[0], pair(2)[1])}
    assert answers["remove membrane"] == answers["fade 0.0"] == ("none", False)
    assert answers["transplant alpha"] == answers["swap"] == ("donor", True)
    assert answers["translate"] == answers["scale"] == answers["fade 0.25"] == ("host", True)
    controls = {name: (out.answer, bool(out.mask.any())) for name, _, out in every(pair(1)[0], pair(2)[1], True)}
    assert controls.pop("transplant alpha") == controls.pop("transplant poisson") == ("host", False)
    assert controls.pop("transplant membrane") == ("host", False)
    assert set(controls.values()) == {("host", True)}


@pytest.mark.parametrize("how", INFILLS)
def test_a_removed_tumor_is_nearer_to_the_same_head_without_it(how):
    errors = []
    for seed in range(4):
        sick, healthy = pair(seed)
        healed = remove(sick.image, sick.mask, sick.foreground, random(), how).image
        errors.append([np.sqrt(np.mean((x - healthy.image)[:, sick.mask] ** 2)) for x in (sick.image, healed)])
    before, after = np.mean(errors, axis=0)
    # Copied tissue may hold a ventricle of its own: healthy, yet not what lay there.
    assert after < (0.8 if how in COPIED else 0.55) * before


@pytest.mark.parametrize("how", INFILLS)
def test_healthy_tissue_is_restored_alike(how):
    """Infilled healthy tissue against itself, as the BraTS inpainting task measures (SSIM, PSNR over the hole)."""
    ssim, psnr = [], []
    for seed in range(4):
        healthy = pair(seed)[1]
        after = remove(healthy.image, healthy.mask, healthy.foreground, random(), how)
        top = float(np.percentile(healthy.image, 99.5))
        _, local = structural_similarity(healthy.image[0], after.image[0], data_range=top, full=True)
        ssim.append(local[after.region].mean())
        inside = after.region
        psnr.append(
            peak_signal_noise_ratio(
                np.clip(healthy.image[:, inside] / top, 0, 1), np.clip(after.image[:, inside] / top, 0, 1), data_range=1
            )
        )
    copied = how in COPIED
    assert np.mean(ssim) > (0.25 if copied else 0.35)
    assert np.mean(psnr) > (11 if copied else 16)


def test_the_control_changes_as_much_as_the_removal_and_leaves_the_tumor():
    head = pair(1)[0]
    own = head.image, head.mask, head.foreground
    gone, control = remove(*own, random(), "patch"), remove(*own, random(), "patch", control=True)
    assert control.region.sum() == gone.region.sum()
    assert not (control.region & grow(head.mask, 4)).any()
    np.testing.assert_array_equal(control.image[:, head.mask], head.image[:, head.mask])
    assert not np.array_equal(control.image, head.image)


def test_a_moved_tumor_is_bright_in_its_new_head_and_its_control_is_not():
    for seed in range(4):
        donor, host = pair(seed)[0], pair(seed + 4)[1]
        middle, height = tissue_scale(host.image, inner(host.foreground), host.foreground)
        bright = []
        for control in (False, True):
            after = transplant(host.image, host.foreground, donor, random(seed), "alpha", control=control)
            core = transplant(host.image, host.foreground, donor, random(seed), "alpha").mask
            bright.append(float(((np.percentile(after.image[0][core], 75) - middle) / height).item()))
        assert bright[0] > bright[1] + 0.3, seed


def test_tumor_and_control_come_to_the_same_place_and_lie_inside_the_head():
    donor, host = pair(1)[0], pair(2)[1]
    moved, control = (
        transplant(host.image, host.foreground, donor, random(), "alpha", control=c) for c in (False, True)
    )
    np.testing.assert_array_equal(moved.region, control.region)
    assert not (moved.mask & ~inner(host.foreground)).any()
    share = moved.mask.sum() / host.foreground.sum() / (donor.mask.sum() / donor.foreground.sum())
    assert 0.8 < share < 1.2


def test_left_and_right_are_kept_and_mirrored_on_demand():
    donor, host = pair(2)[0], pair(3)[1]
    middle = (host.image.shape[1] - 1) / 2

    def side(which: Donor) -> float:
        return float(np.sign(np.nonzero(which.mask)[0].mean() - middle))

    assert side(donor.turned(Turn(0, True))) == -side(donor) != 0
    for which in (donor, donor.turned(Turn(0, True))):
        after = transplant(host.image, host.foreground, which, random(), "alpha")
        assert np.sign(np.nonzero(after.mask)[0].mean() - middle) == side(which)


def test_contrast_is_matched_to_the_host():
    donor, host = pair(1)[0], pair(2)[1]
    loud = Donor((donor.image * 40 + 7 * donor.foreground).astype(np.float32), donor.mask, donor.foreground)
    plain, matched = (transplant(host.image, host.foreground, d, random(), "alpha") for d in (donor, loud))
    np.testing.assert_allclose(matched.image, plain.image, rtol=2e-3, atol=2e-3)


def test_scaled_tumors_have_the_size_that_was_asked_for():
    head = pair(1)[0]
    for factor in (0.6, 0.8, 1.25):
        after = scale(head.image, head.mask, head.foreground, random(), factor)
        assert after.mask.sum() == pytest.approx(factor**2 * head.mask.sum(), rel=0.2)


def test_a_translated_tumor_leaves_its_place():
    head = pair(1)[0]
    after = translate(head.image, head.mask, head.foreground, random())
    assert not (after.mask & head.mask).any()
    assert after.mask.sum() == pytest.approx(head.mask.sum(), rel=0.02)


def test_fading_goes_straight_from_the_removal_to_the_picture_as_it_is():
    head = pair(1)[0]
    own = head.image, head.mask, head.foreground
    faded = fade(*own, random(), (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(faded[2].image, head.image)
    gone = remove(*own, random())
    np.testing.assert_array_equal(faded[0].image, gone.image)
    np.testing.assert_allclose(faded[1].image, (gone.image + head.image) / 2, atol=1e-6)
    with pytest.raises(ValueError, match=r"a level of fading is 0 to 1, got 1\.5"):
        fade(*own, random(), (1.5,))


def test_no_infill_or_blend_of_the_certificate_is_used_in_training():
    assert set(TRAINING_INFILLS) | set(HELD_OUT_INFILLS) == set(INFILLS)
    assert set(TRAINING_BLENDS) | set(HELD_OUT_BLENDS) == set(BLENDS)
    assert not set(TRAINING_INFILLS) & set(HELD_OUT_INFILLS)
    assert not set(TRAINING_BLENDS) & set(HELD_OUT_BLENDS)


def test_what_does_not_fit_is_said():
    head, host = pair(1)[0], pair(2)[1]
    most = grow(inner(head.foreground), 2) & head.foreground
    with pytest.raises(NoRoom, match="of the head: too little healthy tissue"):
        remove(head.image, most, head.foreground, random())
    with pytest.raises(ValueError, match="the mask of the image is empty"):
        remove(head.image, np.zeros_like(head.mask), head.foreground, random())
    with pytest.raises(ValueError, match=r"must be bool \(96, 96\), got uint8"):
        remove(head.image, head.mask.astype(np.uint8), head.foreground, random())
    with pytest.raises(ValueError, match=r"must be float32 \(C, H, W\[, D\]\), got float64"):
        remove(head.image.astype(float), head.mask, head.foreground, random())
    twice = Donor(np.concatenate([head.image] * 2), head.mask, head.foreground)
    with pytest.raises(ValueError, match="the donor has 2 channels, the host 1"):
        transplant(host.image, host.foreground, twice, random())
    small = np.zeros_like(host.foreground)
    small[40:46, 40] = True
    with pytest.raises(NoRoom, match="fits nowhere inside this head"):
        transplant(host.image, small, head, random())
    with pytest.raises(ValueError, match=r"an infill is one of membrane, .*, got 'paint'"):
        remove(head.image, head.mask, head.foreground, random(), "paint")


def test_a_missing_opencv_is_named(monkeypatch):
    monkeypatch.setattr(infill_module, "cv2", None)
    head = pair(1)[0]
    with pytest.raises(ValueError, match=r"'telea' needs OpenCV: pip install .*certificate"):
        remove(head.image, head.mask, head.foreground, random(), "telea")
