"""`Digit69LDM` with parts from diffusers: it runs with them as they are, and it learns."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel

from digit69.core import ModelError, set_quiet, set_threads
from digit69.models.autoencoder import (
    AUTOENCODER_TRAINING,
    autoencoder_loss,
    sample_rows,
    small_autoencoder,
)
from digit69.models.ldm import Digit69LDM
from digit69.models.schedulers import loss_at_fixed_noise
from digit69.pixel_metrics import correlation_matrix
from digit69.simulated_stimuli import simulated_stimuli
from digit69.training import TrainingConfig, train_module

set_threads(1)
set_quiet()
UNET = {
    "sample_size": 7,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "cross_attention_dim": 512,
    "norm_num_groups": 8,
}
TWO_SCALES = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
FOUR_SCALES = {"block_out_channels": (8, 8, 16, 16)}  # with the blocks that diffusers takes


def make_unet(scales=TWO_SCALES, **settings):
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**UNET, **scales, **settings})


def unit_vectors(n, dim=512):
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(n, dim, generator=generator), dim=1)


def diffusion_loss(ldm, batch, generator):
    return ldm.loss(*batch, generator)


@pytest.fixture(scope="module")
def digits():
    images, labels = simulated_stimuli(60, 2, seed=0)[0]
    return torch.tensor(images), np.asarray(labels) == 2


@pytest.fixture(scope="module")
def vae(digits):
    torch.manual_seed(0)
    vae = small_autoencoder()
    short = replace(AUTOENCODER_TRAINING, steps=80)
    train_module(vae, partial(sample_rows, (digits[0],)), autoencoder_loss, short)
    return vae.requires_grad_(False)


def test_diffusers_unet_and_ddpm_learn_which_condition_goes_with_which_digit(digits, vae):
    images, is_nine = digits
    classes = unit_vectors(2)
    ldm = Digit69LDM(make_unet(), vae, DDPMScheduler()).fit_latents(images).eval()
    batch = (ldm.pack(images), classes[is_nine.astype(int)])
    with torch.no_grad():
        before = float(loss_at_fixed_noise(ldm, batch))
    config = TrainingConfig(steps=200, batch=32, lr=3e-3, ema=0.95)
    train_module(ldm, partial(sample_rows, batch), diffusion_loss, config)
    with torch.no_grad():
        assert float(loss_at_fixed_noise(ldm, batch)) < before / 3
    means = np.stack([images[~is_nine].mean(0), images[is_nine].mean(0)])
    samples = ldm.sample(classes, n_samples=20, steps=10).numpy()
    for k in (0, 1):
        nearest = correlation_matrix(samples[k], means).argmax(1)
        assert (nearest == k).mean() > 0.7


@pytest.mark.parametrize("scales", [TWO_SCALES, FOUR_SCALES], ids=["two", "four"])
@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_unet_and_scheduler_are_swapped_freely(vae, scales, scheduler):
    ldm = Digit69LDM(make_unet(scales), vae, scheduler()).eval()
    loss = ldm.loss(torch.randn(3, 4, 7, 7), unit_vectors(3), torch.Generator().manual_seed(0))
    loss.backward()
    assert ldm.unet.null_token.grad is not None
    samples = ldm.sample(unit_vectors(2), n_samples=3, steps=3, guidance_scale=2.0, seed=1)
    assert samples.shape == (2, 3, 28, 28)
    again = ldm.sample(unit_vectors(2), n_samples=3, steps=3, guidance_scale=2.0, seed=1)
    assert torch.equal(samples, again)
    for name in ("ddpm", "ddim", "dpm++", "unipc"):
        assert ldm.sample(unit_vectors(2), steps=2, scheduler=name).shape == (2, 1, 28, 28)


def test_latents_are_not_clipped_to_the_range_of_pixels(vae):
    """A denoiser that knows the latents gets them back, though some lie far outside [-1,1]."""
    clean = 3 * torch.randn(1, 4, 7, 7, generator=torch.Generator().manual_seed(0))

    class Oracle(torch.nn.Module):
        def forward(self, x, t, condition=None, drop=None):
            return clean.expand_as(x)

    scheduler = DDPMScheduler(prediction_type="sample")
    assert scheduler.config.clip_sample  # as diffusers makes it
    ldm = Digit69LDM(Oracle(), vae, scheduler)
    for sampler in (None, "ddim", DDPMScheduler(prediction_type="sample")):
        samples = ldm.sample(torch.zeros(1, 512), steps=10, scheduler=sampler)
        assert torch.allclose(samples[:, 0], ldm.unpack(clean), atol=5e-3)


def test_a_unet_of_the_wrong_size_is_refused_in_one_line(vae):
    ldm = Digit69LDM(make_unet(in_channels=3), vae, DDPMScheduler())
    with pytest.raises(ModelError, match="in_channels=4"):
        ldm.sample(unit_vectors(1))
    ldm = Digit69LDM(make_unet(cross_attention_dim=64), vae, DDPMScheduler())
    with pytest.raises(ModelError, match="cross_attention_dim=512"):
        ldm.sample(unit_vectors(1))


def test_an_autoencoder_of_two_downsamplings_and_attention_serves_too(digits):
    from diffusers import AutoencoderKL

    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=4,
    ).requires_grad_(False)
    ldm = Digit69LDM(make_unet(), autoencoder, DDPMScheduler()).fit_latents(digits[0]).eval()
    assert ldm.pack(digits[0][:2]).shape == (2, 4, 7, 7)
    assert ldm.sample(unit_vectors(2), steps=2).shape == (2, 1, 28, 28)


def test_weights_travel_as_a_plain_state_dict(vae, tmp_path):
    ldm = Digit69LDM(make_unet(), vae, DDPMScheduler()).eval()
    torch.nn.init.normal_(ldm.unet.null_token)
    torch.save(ldm.state_dict(), tmp_path / "enhanced_ldm_best.pth")
    again = Digit69LDM(make_unet(), vae, DDPMScheduler()).eval()
    again.load_state_dict(torch.load(tmp_path / "enhanced_ldm_best.pth", weights_only=True))
    settings = {"steps": 2, "guidance_scale": 2.0}
    assert torch.equal(
        ldm.sample(unit_vectors(2), **settings), again.sample(unit_vectors(2), **settings)
    )
