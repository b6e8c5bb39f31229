"""Every model of the registry, examined in the same way, in its smallest size."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from digit69.core import ModelError
from digit69.models.base import load_model
from digit69.models.registry import available_models
from digit69.readers import write_split
from digit69.simulation import simulate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("all")


def file_names(folder):
    return {file.name for file in folder.iterdir()}


def test_all_models_in_one_run(digit69, folder):
    data = write_split(simulate(n_train=30, n_test=6, n_voxels=80), folder / "sim.mat")
    run = folder / "run"
    done = digit69(
        "run",
        "--data",
        data,
        "--models",
        "all",
        "--preset",
        "smoke",
        "--prior",
        "own",
        "--out",
        run,
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run / "metrics.json").read_text())["models"]
    assert set(available_models()) <= set(metrics)
    for name in ("cvae", "diffusion", "ldm"):
        with np.load(run / "reconstructions" / f"{name}.npz") as arrays:
            assert arrays["samples"].shape == (6, 19, 28, 28)
            assert arrays["reconstructions"].shape == (6, 28, 28)
        assert f"{name}_sample" in metrics
    figures = file_names(run / "figures")
    promised = {
        "enhanced_training_curves.png",
        "comprehensive_model_comparison.png",
        "metrics_comparison.png",
        "embedding_alignment.png",
    }
    assert promised <= figures
    assert any(name.startswith("enhanced_samples_epoch_") for name in figures)
    embeddings = {
        "digit69_embeddings.pkl",
        "digit69_embeddings.npz",
        "digit69_embeddings_metadata.json",
    }
    assert embeddings <= file_names(run / "embeddings")


@pytest.mark.parametrize(
    "model, artefact, key",
    [
        ("regression", "baseline_model_best", None),
        ("diffusion", "enhanced_ldm_best", "model_state_dict"),
    ],
)
def test_promised_weights_load_safely_and_agree(folder, model, artefact, key):
    model_folder = folder / "run" / "models" / model
    loaded = torch.load(model_folder / f"{artefact}.pth", weights_only=True)
    state = loaded[key] if key else loaded
    twin = load_file(model_folder / f"{artefact}.safetensors")
    assert set(state) == set(twin)
    assert all(np.array_equal(state[name].numpy(), twin[name]) for name in state)


def test_a_saved_model_reconstructs_rows_that_come_alone(digit69, folder):
    run = folder / "run"
    for name in ("regression", "ldm"):
        model, out = run / "models" / name, folder / f"{name}.npz"
        done = digit69(
            "reconstruct", "--model", model, "--data", folder / "sim.mat", "--out", out
        )
        assert done.returncode == 0, done.stderr
        with np.load(out) as alone, np.load(run / "reconstructions" / f"{name}.npz") as together:
            assert np.abs(alone["reconstructions"] - together["reconstructions"]).max() < 1e-5
    out = folder / "samples.npz"
    words = (
        "--model",
        run / "models" / "ldm",
        "--data",
        folder / "sim.mat",
        "--out",
        out,
        "--samples",
        3,
    )
    done = digit69("reconstruct", *words)
    assert done.returncode == 0, done.stderr
    with np.load(out) as arrays:
        assert arrays["samples"].shape == (6, 3, 28, 28)


def test_a_folder_with_hyperparameters_of_other_names_is_refused_in_one_line(tmp_path):
    old_names = {"seed": 0, "stage": "quick", "sampler_steps": 2, "guidance": 1.0, "real": 0.2}
    card = {"schema_version": 1, "model": "ldm", "params": old_names, "facts": {}, "files": []}
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(
        ModelError, match="before names changed .* train it again with `digit69 train`"
    ) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
