"""Models on embeddings: the same seed, the same model; saved and loaded, the same images.

All are of smoke size: nothing here is about quality."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from digit69.core import set_quiet
from digit69.models.autoencoder import round_trip, small_autoencoder
from digit69.models.base import Reconstructor
from digit69.models.denoiser import LatentDenoiser
from digit69.models.ldm import Digit69LDM
from digit69.models.registry import make_model
from digit69.models.regression import SimpleRegressionModel
from digit69.models.schedulers import latent_schedule
from digit69.models.vae import ConditionalVAE
from digit69.simulation import simulate

set_quiet()
NAMES = ("regression", "cvae", "ldm")
SAMPLING = ("cvae", "ldm")


def simulated_subject(n_voxels=60):
    return simulate(n_train=24, n_test=5, n_voxels=n_voxels, seed=0)


@pytest.fixture(scope="module")
def split():
    return simulated_subject()


@pytest.fixture(scope="module")
def models(split):
    return {name: make_model(name, "smoke").fit(split.train) for name in NAMES}


def embeddings(n=3):
    return torch.nn.functional.normalize(
        torch.randn(n, 512, generator=torch.Generator().manual_seed(0)), dim=1
    )


def n_weights(module):
    return sum(weights.numel() for weights in module.parameters())


def small_ldm(prediction="sample"):
    denoiser = LatentDenoiser(width=16, depth=1)
    return Digit69LDM(denoiser, small_autoencoder(), latent_schedule(prediction)).eval()


def assert_images(images, shape):
    assert images.shape == shape
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1


# --- modules -----------------------------------------------------------------------------------------------


def test_networks_have_the_promised_sizes():
    assert n_weights(SimpleRegressionModel()) == 5_534_480
    assert n_weights(SimpleRegressionModel(fmri_dim=512, image_size=28)) == 5_534_480
    assert n_weights(small_autoencoder()) == 164_845


@pytest.mark.parametrize("n", [1, 4])
def test_28_pixels_in_28_pixels_out(n):
    images = torch.rand(n, 28, 28)
    assert SimpleRegressionModel().eval()(embeddings(n)).shape == (n, 1, 28, 28)
    vae = ConditionalVAE().eval()
    reconstruction, mean, _ = vae(images[:, None], embeddings(n))
    assert reconstruction.shape == (n, 1, 28, 28)
    assert vae.decode(mean, embeddings(n)).shape == (n, 1, 28, 28)
    assert vae.reconstruct(embeddings(n)).shape == (n, 28, 28)
    assert vae.sample(embeddings(n), 3).shape == (n, 3, 28, 28)
    assert round_trip(small_autoencoder().eval(), images).shape == (n, 28, 28)


def test_regression_weights_travel_as_a_plain_state_dict(tmp_path):
    torch.manual_seed(0)
    model = SimpleRegressionModel().eval()
    torch.save(model.state_dict(), tmp_path / "baseline_model_best.pth")
    again = SimpleRegressionModel(fmri_dim=512, image_size=28).eval()
    again.load_state_dict(torch.load(tmp_path / "baseline_model_best.pth", weights_only=True))
    with torch.no_grad():
        assert torch.equal(model(embeddings()), again(embeddings()))


# --- fitted models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_reconstructs_the_same(split, models, name, tmp_path):
    model = models[name]
    again = Reconstructor.load(model.save(tmp_path / name))
    images = model.reconstruct(split.test.fmri)
    assert_images(images, (5, 28, 28))
    assert np.array_equal(again.reconstruct(split.test.fmri), images)
    assert again.get_params() == model.get_params()
    assert again.n_parameters == model.n_parameters
    if name in SAMPLING:
        samples = model.sample(split.test.fmri, 2, seed=3)
        assert np.array_equal(again.sample(split.test.fmri, 2, seed=3), samples)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_model(split, models, name):
    images = models[name].reconstruct(split.test.fmri)
    again = make_model(name, "smoke").fit(split.train)
    assert np.array_equal(again.reconstruct(split.test.fmri), images)
    other = make_model(name, "smoke", seed=1).fit(split.train)
    assert not np.array_equal(other.reconstruct(split.test.fmri), images)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_reconstructed_alone_as_among_others(split, models, name):
    together = models[name].reconstruct(split.test.fmri)
    alone = models[name].reconstruct(split.test.fmri[2:3])
    assert np.allclose(alone, together[2:3], atol=1e-5)


@pytest.mark.parametrize("name", SAMPLING)
def test_samples_are_seeded_and_differ(split, models, name):
    samples = models[name].sample(split.test.fmri, 3, seed=1)
    assert_images(samples, (5, 3, 28, 28))
    assert np.array_equal(samples, models[name].sample(split.test.fmri, 3, seed=1))
    assert not np.array_equal(samples, models[name].sample(split.test.fmri, 3, seed=2))
    assert not np.array_equal(samples[:, 0], samples[:, 1])


@pytest.mark.parametrize("n_voxels", [40, 90])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_voxels_will_do(name, n_voxels):
    split = simulated_subject(n_voxels)
    images = make_model(name, "smoke").fit(split.train).reconstruct(split.test.fmri)
    assert images.shape == (5, 28, 28)


# --- latent diffusion --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "epsilon"])
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm++", "unipc"])
def test_every_scheduler_samples_from_the_same_ldm(prediction, scheduler):
    torch.manual_seed(0)
    ldm = small_ldm(prediction)
    for steps, guidance_scale in ((1, 1.0), (2, 2.0), (7, 1.5)):
        settings = {
            "steps": steps,
            "guidance_scale": guidance_scale,
            "seed": 4,
            "scheduler": scheduler,
        }
        samples = ldm.sample(embeddings(2), n_samples=2, **settings)
        assert torch.isfinite(samples).all()
        assert_images(samples.numpy(), (2, 2, 28, 28))
        assert torch.equal(samples, ldm.sample(embeddings(2), n_samples=2, **settings))


def test_an_ldm_takes_a_scheduler_object():
    ldm = small_ldm()
    scheduler = DPMSolverMultistepScheduler.from_config(ldm.scheduler.config)
    by_object = ldm.sample(embeddings(), scheduler=scheduler)
    assert torch.equal(by_object, ldm.sample(embeddings(), scheduler="dpm++"))


def test_dropped_conditions_do_not_reach_the_denoiser():
    torch.manual_seed(0)
    denoiser = LatentDenoiser(width=16, depth=1).eval()
    torch.nn.init.normal_(
        denoiser.blocks[0].correct[-1].weight
    )  # an untrained block adds nothing
    latents = torch.randn(3, 4, 7, 7)
    steps = torch.tensor([1, 500, 999])
    dropped = torch.ones(3, dtype=bool)
    with torch.no_grad():
        unconditional = denoiser(latents, steps)
        assert torch.allclose(
            denoiser(latents, steps, embeddings(), dropped), unconditional, atol=1e-6
        )
        assert not torch.allclose(
            denoiser(latents, steps, embeddings()), unconditional, atol=1e-4
        )
