"""The models on embeddings: same seed, same model; saved and loaded, same answers; any number of voxels. Smoke presets: nothing here is about quality."""
import numpy as np
import pytest
import torch

from digit69.core import set_quiet
from digit69.models.base import Reconstructor, make_model
from digit69.models.ldm import Digit69LDM, latent_schedule
from digit69.models.denoiser import LatentDenoiser
from digit69.models.regression import SimpleRegressionModel
from digit69.models.vae import ConditionalVAE
from digit69.models.autoencoder import round_trip, small_autoencoder
from digit69.simulation import simulate

set_quiet()
NAMES = ("regression", "cvae", "ldm")
DRAWING = ("cvae", "ldm")


def subject(voxels=60):
    return simulate(n_train=24, n_test=5, n_voxels=voxels, seed=0)


@pytest.fixture(scope="module")
def fitted():
    split = subject()
    return split, {name: make_model(name, "smoke").fit(split.train) for name in NAMES}


def embeddings(n=3):
    return torch.nn.functional.normalize(torch.randn(n, 512, generator=torch.Generator().manual_seed(0)), dim=1)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_promised_sizes():
    assert parameters(SimpleRegressionModel()) == parameters(SimpleRegressionModel(fmri_dim=512, image_size=28)) == 5_534_480
    assert parameters(small_autoencoder()) == 164_845


@pytest.mark.parametrize("n", [1, 4])
def test_28_in_28_out(n):
    images = torch.rand(n, 28, 28)
    assert SimpleRegressionModel().eval()(embeddings(n)).shape == (n, 1, 28, 28)
    vae = ConditionalVAE().eval()
    out, mean, logvar = vae(images[:, None], embeddings(n))
    assert out.shape == vae.decode(mean, embeddings(n)).shape == (n, 1, 28, 28)
    assert vae.reconstruct(embeddings(n)).shape == (n, 28, 28) and vae.sample(embeddings(n), 3).shape == (n, 3, 28, 28)
    assert round_trip(small_autoencoder().eval(), images).shape == (n, 28, 28)


def test_regression_weights_travel_as_a_plain_state_dict(tmp_path):
    torch.manual_seed(0)
    model = SimpleRegressionModel().eval()
    torch.save(model.state_dict(), tmp_path / "baseline_model_best.pth")
    again = SimpleRegressionModel(fmri_dim=512, image_size=28).eval()
    again.load_state_dict(torch.load(tmp_path / "baseline_model_best.pth", weights_only=True))
    with torch.no_grad():
        assert torch.equal(model(embeddings()), again(embeddings()))


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_answers_the_same(fitted, name, tmp_path):
    split, models = fitted
    again = Reconstructor.load(models[name].save(tmp_path / name))
    answer = models[name].reconstruct(split.test.fmri)
    assert answer.shape == (5, 28, 28) and answer.dtype == np.float32 and 0 <= answer.min() and answer.max() <= 1
    assert np.array_equal(again.reconstruct(split.test.fmri), answer)
    assert again.get_params() == models[name].get_params() and again.n_parameters == models[name].n_parameters
    if name in DRAWING:
        assert np.array_equal(again.sample(split.test.fmri, 2, seed=3), models[name].sample(split.test.fmri, 2, seed=3))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_model(fitted, name):
    split, models = fitted
    again = make_model(name, "smoke").fit(split.train)
    assert np.array_equal(again.reconstruct(split.test.fmri), models[name].reconstruct(split.test.fmri))
    other = make_model(name, "smoke", seed=1).fit(split.train)
    assert not np.array_equal(other.reconstruct(split.test.fmri), models[name].reconstruct(split.test.fmri))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_answered_alone_as_among_others(fitted, name):
    split, models = fitted
    together = models[name].reconstruct(split.test.fmri)
    assert np.allclose(models[name].reconstruct(split.test.fmri[2:3]), together[2:3], atol=1e-5)


@pytest.mark.parametrize("name", DRAWING)
def test_draws_are_seeded_and_differ(fitted, name):
    split, models = fitted
    draws = models[name].sample(split.test.fmri, 3, seed=1)
    assert draws.shape == (5, 3, 28, 28) and draws.dtype == np.float32 and 0 <= draws.min() and draws.max() <= 1
    assert np.array_equal(draws, models[name].sample(split.test.fmri, 3, seed=1))
    assert not np.array_equal(draws, models[name].sample(split.test.fmri, 3, seed=2))
    assert not np.array_equal(draws[:, 0], draws[:, 1])


@pytest.mark.parametrize("name", NAMES)
def test_other_numbers_of_voxels(name):
    for voxels in (40, 90):
        split = subject(voxels)
        assert make_model(name, "smoke").fit(split.train).reconstruct(split.test.fmri).shape == (5, 28, 28)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "epsilon"])
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm++", "unipc"])
def test_every_scheduler_draws_from_the_same_ldm(prediction, scheduler):
    torch.manual_seed(0)
    ldm = Digit69LDM(LatentDenoiser(width=16, depth=1), small_autoencoder(), latent_schedule(prediction)).eval()
    for steps, guidance_scale in ((1, 1.), (2, 2.), (7, 1.5)):
        draws = ldm.sample(embeddings(2), n_samples=2, steps=steps, guidance_scale=guidance_scale, seed=4, scheduler=scheduler)
        assert draws.shape == (2, 2, 28, 28) and torch.isfinite(draws).all() and draws.min() >= 0 and draws.max() <= 1
        assert torch.equal(draws, ldm.sample(embeddings(2), 2, steps, guidance_scale, 4, scheduler))


def test_an_ldm_takes_a_scheduler_object():
    from diffusers import DPMSolverMultistepScheduler
    ldm = Digit69LDM(LatentDenoiser(width=16, depth=1), small_autoencoder(), latent_schedule()).eval()
    other = DPMSolverMultistepScheduler.from_config(ldm.scheduler.config)
    assert torch.equal(ldm.sample(embeddings(), scheduler=other), ldm.sample(embeddings(), scheduler="dpm++"))


def test_dropped_conditions_do_not_reach_the_denoiser():
    torch.manual_seed(0)
    denoiser = LatentDenoiser(width=16, depth=1).eval()
    torch.nn.init.normal_(denoiser.blocks[0].correct[-1].weight)     # at birth no block says anything
    x, t, dropped = torch.randn(3, 4, 7, 7), torch.tensor([1, 500, 999]), torch.ones(3, dtype=bool)
    with torch.no_grad():
        assert torch.allclose(denoiser(x, t, embeddings(), dropped), denoiser(x, t), atol=1e-6)
        assert not torch.allclose(denoiser(x, t, embeddings()), denoiser(x, t), atol=1e-4)
