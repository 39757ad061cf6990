"""The residual MLP and the UNet in one dimension."""

from __future__ import annotations

import pytest
import torch

from ddim.denoisers import ResidualMLP, UNet, UNet1d, build_denoiser
from ddim.denoisers.build import new_denoiser
from ddim.errors import UserError


def stirred(network: torch.nn.Module) -> torch.nn.Module:
    """With last layers that are not zero: the answers depend on everything."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return network.eval()


def mlp(**more) -> ResidualMLP:
    return ResidualMLP(**{"shape": [3], "width": 8, "depth": 2, **more})


def unet(**more) -> UNet1d:
    small = {"shape": [2, 16], "base_channels": 8, "channel_mult": [1, 2, 2], "norm_groups": 4, "attention_levels": [1]}
    return UNet1d(**{**small, **more})


NETWORKS = {"mlp": mlp, "unet_1d": unet}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_new_network_is_zero_and_a_trained_one_depends_on_everything(name):
    network = NETWORKS[name]()
    x, t = torch.randn(4, *network.sample_shape), torch.tensor([0, 1, 500, 999])
    assert torch.equal(network(x, t), torch.zeros_like(x))
    stirred(network)
    out = network(x, t)
    assert out.shape == x.shape
    assert not torch.allclose(out, network(x, t + 1)) and not torch.allclose(out, network(x + 0.1, t))
    grads = torch.autograd.grad(network(x, t).square().sum(), list(network.parameters()))
    assert all(grad.abs().max() > 0 for grad in grads)


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_do_not_see_each_other(name):
    network = stirred(NETWORKS[name]()).double()
    x, t = torch.randn(6, *network.sample_shape, dtype=torch.float64), torch.arange(6) * 100
    together = network(x, t)
    for number in range(6):
        assert torch.allclose(network(x[number : number + 1], t[number : number + 1])[0], together[number], atol=1e-10)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    assert torch.allclose(network(x[order], t[order]), together[order], atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_configuration_rebuilds_it(name):
    network = stirred(NETWORKS[name]())
    again = build_denoiser({"name": name, **network.config})
    again.load_state_dict(network.state_dict())
    x = torch.randn(2, *network.sample_shape)
    assert torch.equal(again.eval()(x, torch.tensor([3, 4])), network(x, torch.tensor([3, 4])))


def test_the_shape_is_that_of_the_data():
    assert new_denoiser({"name": "mlp", "shape": None, "width": 8}, (30,), "table").config["shape"] == [30]
    assert new_denoiser({"name": "unet_1d", "shape": None}, (1, 24), "days").sample_shape == (1, 24)
    with pytest.raises(UserError, match=r"length of 25 is not divisible by 2.*dataset.length"):
        new_denoiser({"name": "unet_1d", "shape": None}, (1, 25), "days")
    with pytest.raises(UserError, match=r"shape must be a list of 2 positive integers"):
        new_denoiser({"name": "unet_1d", "shape": None}, (2,), "points2d")
    with pytest.raises(UserError, match=r"denoiser takes samples of 3, dataset points2d has 2"):
        new_denoiser({"name": "mlp", "shape": [3]}, (2,), "points2d")


@pytest.mark.parametrize("length", [4, 8, 20, 64])
def test_any_length_that_is_divisible(length):
    network = stirred(unet())
    assert network(torch.randn(1, 2, length), torch.tensor([1])).shape == (1, 2, length)
    with pytest.raises(ValueError, match=rf"length of {length + 2} is not divisible by 4"):
        network(torch.randn(1, 2, length + 2), torch.tensor([1]))


def test_far_from_the_edges_a_shift_in_time_is_a_shift():
    """Without attention, by whole steps of the lowest level: only padding knows where a series begins."""
    network = stirred(unet(attention_levels=[])).double()
    network.middle[0].attention = torch.nn.Identity()
    # Normalisation looks at the whole length, where both have the same values.
    pulse = torch.zeros(1, 2, 256, dtype=torch.float64)
    pulse[..., 124:132] = torch.randn(1, 2, 8, dtype=torch.float64)
    t = torch.tensor([7])
    moved = network(pulse.roll(8, dims=2), t)
    assert torch.allclose(moved[..., 100:160], network(pulse, t).roll(8, dims=2)[..., 100:160], atol=1e-9)


def test_one_row_of_pixels_costs_what_the_unet_of_images_does():
    """The same drawing: as many layers of each kind, with kernels that are three times smaller."""
    ours = UNet1d(shape=[1, 8], base_channels=8, channel_mult=[1, 2], attention_levels=[1], norm_groups=4)
    images = UNet(
        **{"in_channels": 1, "resolution": 8, "base_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1},
        **{"attention_resolutions": [4], "dropout": 0.0, "norm_groups": 4},
    )

    def kinds(network):
        named = (p for p in network.parameters())
        return sorted((p.dim(), p.shape[0]) for p in named)

    assert kinds(ours) == kinds(images)


@pytest.mark.parametrize(
    ("make", "arguments", "sentence"),
    [
        (mlp, {"width": 7}, "width must be even"),
        (mlp, {"depth": 0}, "depth must be a positive integer"),
        (mlp, {"dropout": 1}, r"dropout must be a number in \[0, 1\)"),
        (mlp, {"shape": None}, "shape must be a list"),
        (unet, {"shape": [2, 18]}, "a length of 18 is not divisible by 4"),
        (unet, {"channel_mult": []}, "channel_mult must be a list"),
        (unet, {"norm_groups": 3}, "norm_groups 3 must divide"),
        (unet, {"attention_levels": [-1]}, "attention_levels must be a list of numbers of levels"),
        (unet, {"base_channels": 5}, "base_channels must be even"),
    ],
)
def test_arguments_that_are_refused(make, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**arguments)
