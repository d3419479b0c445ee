from __future__ import annotations

import copy
import io
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from monai.networks.nets import DynUNet

from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from tests.networks.nets import heads, shape_arguments, tiny

OUTPUTS = ("seg", "cls", "evidence")


def count_calls(network: torch.nn.Module, names: tuple[str, ...]) -> dict[str, int]:
    calls = dict.fromkeys(names, 0)

    def count(name: str) -> None:
        calls[name] += 1

    for name in names:
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: count(name))
    return calls


PARTS = ("bottleneck", "upsamples.0", "upsamples.1", "output_block", "head", "head.features", "head.evidence")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda net, x: net(x), [1, 1, 1, 1, 0, 0, 0]),
        (lambda net, x: net(x, output="cls"), [1, 0, 0, 0, 1, 1, 1]),
        (lambda net, x: net(x, output="evidence"), [1, 0, 0, 0, 1, 1, 1]),
        (lambda net, x: net.multitask(x), [1, 1, 1, 1, 1, 1, 1]),
        (lambda net, x: net.multitask(x, classification=False), [1, 1, 1, 1, 0, 0, 0]),
        (lambda net, x: net.multitask(x, segmentation=False), [1, 0, 0, 0, 1, 1, 1]),
    ],
    ids=["seg", "cls", "evidence", "multitask", "segmentation only", "classification only"],
)
def test_only_what_is_asked_is_computed(call, expected):
    network = tiny()
    calls = count_calls(network, PARTS)
    call(network, heads())
    assert list(calls.values()) == expected


def test_forward_gives_the_outputs_of_multitask():
    network, x = tiny(), heads()
    with torch.no_grad():
        all_outputs = network.multitask(x)
        assert sorted(all_outputs) == sorted(OUTPUTS)
        for name in OUTPUTS:
            assert torch.equal(network(x, output=name), all_outputs[name])
        assert torch.equal(network(x), all_outputs["seg"])
    assert [list(all_outputs[name].shape) for name in OUTPUTS] == [[2, 2, 24, 24], [2, 3], [2, 3, 12, 12]]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_evidence_lies_on_the_grid_of_the_finest_fused_level(levels):
    assert tiny(evidence_levels=levels)(heads(), output="evidence").shape[-1] == {1: 6, 2: 12, 3: 24}[levels]


@pytest.mark.parametrize("pooling", ["logsumexp", "mean"])
def test_class_logits_are_the_pooled_evidence_plus_bias(pooling):
    network, x = tiny(pooling=pooling), heads()
    with torch.no_grad():
        outputs = network.multitask(x)
    inside = torch.nn.functional.max_pool2d((x != 0).float(), 2)[:, 0] > 0
    for b in range(2):
        values = outputs["evidence"][b][:, inside[b]].double()
        pooled = values.mean(1) if pooling == "mean" else (values * 5).exp().mean(1).log() / 5
        expected = pooled + network.head.bias.detach()
        torch.testing.assert_close(outputs["cls"][b].double(), expected, atol=1e-5, rtol=0)


def test_unknown_output_is_refused():
    with pytest.raises(ValueError, match="output is 'seg', 'cls' or 'evidence', got 'mask'"):
        tiny()(heads(), output="mask")


def test_evidence_of_a_network_without_evidence_is_refused():
    network = tiny(head="average_pool", normalization="instance")
    assert sorted(network.multitask(heads())) == ["cls", "seg"]
    with pytest.raises(ValueError, match="built with head='average_pool', which has no evidence map"):
        network(heads(), output="evidence")


@pytest.mark.parametrize(("dims", "size", "stride"), [(2, (24, 26), [4, 4]), (3, (8, 8, 6), [4, 4, 4])])
def test_size_that_is_no_multiple_of_the_stride_is_refused(dims, size, stride):
    message = f"spatial size {list(size)} is not a multiple of the total stride {stride}; pad the image with zeros"
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny(dims)(torch.ones(1, 1, *size))


def test_image_without_foreground_is_refused():
    x = heads()
    x[1] = 0
    with pytest.raises(ValueError, match="an image has no foreground: all its pixels are exactly 0"):
        tiny()(x)
    with pytest.raises(ValueError, match="an image has no foreground"):
        tiny()(heads(), torch.zeros(2, 1, 24, 24))


def test_given_foreground_keeps_a_zeroed_patch_in_the_head():
    network, x = tiny(), heads()
    foreground = (x != 0).to(torch.uint8)
    patched = x.clone()
    patched[:, :, 10:14, 10:14] = 0
    with torch.no_grad():
        torch.testing.assert_close(network(x, foreground, "cls"), network(x, output="cls"), atol=0, rtol=0)
        seg = network(patched, foreground)
        assert (seg[:, 0, 10:14, 10:14] != 10).all(), "the patch is no air"
        assert (network(patched)[:, 0, 10:14, 10:14] == 10).all(), "without the foreground it is"


def test_foreground_is_where_any_channel_is_not_zero():
    x = torch.zeros(1, 2, 4, 4)
    x[0, 0, 1, 1] = -3
    x[0, 1, 2, 3] = 1e-6
    expected = torch.zeros(1, 1, 4, 4)
    expected[0, 0, 1, 1] = expected[0, 0, 2, 3] = 1
    assert torch.equal(tiny(in_channels=2).foreground_of(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"res_block": True}, "res_block is not supported"),
        ({"deep_supervision": True}, "4 filters or more, got 3"),
        ({"normalization": "batch"}, "normalization is one of foreground, instance, got 'batch'"),
        ({"head": "mlp"}, "head is one of evidence, average_pool, got 'mlp'"),
        ({"pooling": "max"}, "pooling is one of logsumexp, mean, got 'max'"),
        ({"num_classes": 1}, "at least 2, got 1"),
        ({"evidence_levels": 4}, "between 1 and the 3 encoder levels, got 4"),
        ({"evidence_levels": 0}, "between 1 and the 3 encoder levels, got 0"),
        ({"window": [16]}, "a size for each of 2 axes"),
        ({"window": [16, 16], "head": "average_pool"}, "needs the head 'evidence'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MultiTaskDynUNet(**shape_arguments(), **options)


def test_parts_cover_every_parameter_once():
    network = tiny()
    parts = [p for part in ("encoder", "decoder", "head") for p in network.parameters_of(part)]
    assert sorted(map(id, parts)) == sorted(map(id, network.parameters()))
    with pytest.raises(ValueError, match="part is one of encoder, decoder, head, got 'neck'"):
        network.modules_of("neck")


def test_stock_checkpoint_loads_and_gives_the_identical_segmentation():
    torch.manual_seed(3)
    stock = DynUNet(**shape_arguments()).eval()
    for name, parameter in stock.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    network = tiny(normalization="instance")
    missing, unexpected = network.load_state_dict(stock.state_dict(), strict=False)
    assert all(key.startswith("skip_layers.") for key in unexpected)
    assert {key.split(".")[0] for key in missing} == {"head", "threshold", "temperature"}
    x = heads()
    with torch.no_grad():
        assert torch.equal(network(x), stock(x))
    # The same weights behind the foreground-aware norm are another function.
    masked = tiny()
    masked.load_state_dict(stock.state_dict(), strict=False)
    inside = (x != 0).expand(-1, 2, -1, -1)
    assert (masked(x) - stock(x))[inside].abs().max() > 1e-2


def test_state_dict_has_the_stock_names_once():
    keys = set(tiny().state_dict())
    stock = {key for key in DynUNet(**shape_arguments()).state_dict() if not key.startswith("skip_layers.")}
    assert stock <= keys
    assert {key.split(".")[0] for key in keys - stock} == {
        "head",
        "threshold",
        "temperature",
        "fixed_part",
        "mask_threshold",
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dims": 3},
        {"pooling": "mean"},
        {"normalization": "instance", "head": "average_pool"},
        {"evidence": "rectified"},
        {"evidence": "softplus", "dims": 3},
    ],
    ids=["2D", "3D", "mean pooling", "stock design", "rectified", "softplus 3D"],
)
def test_torchscript_equals_eager(options):
    network = tiny(**options)
    x = heads(options.get("dims", 2), 12)
    scripted = torch.jit.script(network)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    foreground = torch.ones_like(x)
    with torch.no_grad():
        for given in (None, foreground):
            eager, script = network.multitask(x, given), loaded.multitask(x, given)
            assert eager.keys() == script.keys()
            for name, value in eager.items():
                # Eager normalization runs in blocks, the scripted one in plain operations: rounding.
                torch.testing.assert_close(script[name], value, atol=2e-5, rtol=2e-5)
                torch.testing.assert_close(loaded(x, given, name), value, atol=2e-5, rtol=2e-5)
        assert sorted(loaded.multitask(x, None, False, True)) == sorted(network.multitask(x, None, False, True))
    with pytest.raises(Exception, match="is not a multiple of the total stride"):
        loaded(torch.ones(1, 1, *[10] * (x.ndim - 2)))


def test_trace_equals_eager():
    network, x = tiny(), heads()
    traced = torch.jit.trace(network, x, check_trace=False)
    other = heads(touching=True)
    with torch.no_grad():
        torch.testing.assert_close(traced(other), network(other), atol=1e-6, rtol=1e-6)


def test_deep_copy_is_equal_and_independent():
    network, x = tiny(), heads()
    twin = copy.deepcopy(network)
    with torch.no_grad():
        before = network(x, output="cls")
        assert torch.equal(twin(x, output="cls"), before)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(network(x, output="cls"), before)
        assert not torch.equal(twin(x, output="cls"), before)


def test_threads_do_not_mix_their_images():
    network = tiny()
    images = [heads(size=16 + 4 * (i % 3), batch=1, touching=bool(i % 2)) * (1 + i) for i in range(8)]

    def run(x: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return network.multitask(x)

    expected = [run(x) for x in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, images * 5))
    for i, outputs in enumerate(found):
        for name, value in expected[i % 8].items():
            torch.testing.assert_close(outputs[name], value, atol=1e-6, rtol=0)


def test_bfloat16_keeps_outputs_in_float32_and_air_at_zero():
    network, x = tiny(), heads()
    with torch.no_grad():
        exact = network.multitask(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network.multitask(x)
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        assert (rough[name] - value).abs().max() < 0.1 * value.abs().max()
    assert (rough["evidence"][exact["evidence"] == 0] == 0).all()


def test_dropout_is_active_in_training_only():
    network, x = tiny(dropout=0.5), heads()
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        network.train()
        assert not torch.equal(network(x), network(x))
