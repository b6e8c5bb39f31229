"""Every model of the registry, through the same door, in its smallest size."""
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from digit69.readers import write_split
from digit69.models.base import available_models
from digit69.simulation import simulate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("all")


def test_all_models_in_one_run(digit69, folder):
    data = write_split(simulate(n_train=30, n_test=6, n_voxels=80), folder / "sim.mat")
    done = digit69("run", "--data", data, "--models", "all", "--preset", "smoke", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    run = folder / "run"
    metrics = json.loads((run / "metrics.json").read_text())["models"]
    assert set(available_models()) <= set(metrics)
    for name in ("cvae", "diffusion", "ldm"):
        with np.load(run / "reconstructions" / f"{name}.npz") as z:
            assert z["samples"].shape == (6, 19, 28, 28) and z["reconstructions"].shape == (6, 28, 28)
        assert f"{name}_sample" in metrics
    figures = {p.name for p in (run / "figures").iterdir()}
    assert {"enhanced_training_curves.png", "comprehensive_model_comparison.png", "metrics_comparison.png", "embedding_alignment.png"} <= figures
    assert any(f.startswith("enhanced_samples_epoch_") for f in figures)
    assert {"digit69_embeddings.pkl", "digit69_embeddings.npz", "digit69_embeddings_metadata.json"} <= {p.name for p in (run / "embeddings").iterdir()}


@pytest.mark.parametrize("model,artefact,key", [("regression", "baseline_model_best", None), ("diffusion", "enhanced_ldm_best", "model_state_dict")])
def test_promised_weights_load_safely_and_agree(folder, model, artefact, key):
    place = folder / "run" / "models" / model
    state = torch.load(place / f"{artefact}.pth", weights_only=True)
    state = state[key] if key else state
    twin = load_file(place / f"{artefact}.safetensors")
    assert set(state) == set(twin) and all(np.array_equal(state[k].numpy(), twin[k]) for k in state)


def test_a_saved_model_answers_rows_that_come_alone(digit69, folder):
    for name in ("regression", "ldm"):
        done = digit69("reconstruct", "--model", folder / "run" / "models" / name, "--data", folder / "sim.mat", "--out", folder / f"{name}.npz")
        assert done.returncode == 0, done.stderr
        with np.load(folder / f"{name}.npz") as a, np.load(folder / "run" / "reconstructions" / f"{name}.npz") as b:
            assert np.abs(a["reconstructions"] - b["reconstructions"]).max() < 1e-5
    done = digit69("reconstruct", "--model", folder / "run" / "models" / "ldm", "--data", folder / "sim.mat", "--out", folder / "s.npz", "--samples", 3)
    with np.load(folder / "s.npz") as z:
        assert z["samples"].shape == (6, 3, 28, 28)
