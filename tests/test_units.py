"""The unit of voxels is nobody's business: every model and every check says the same in any unit."""

from dataclasses import replace

import numpy as np
import pytest

from digit69.attribution import haufe_patterns, linear_readout
from digit69.ceilings import intraclass_correlation
from digit69.encoding import EncodingModel
from digit69.models.base import load_model
from digit69.models.registry import available_models, make_model
from digit69.quality import audit
from digit69.simulation import simulate
from digit69.voxels import learn_scaling

POWERS_OF_TWO = {"2^-50": 2.0**-50, "2^50": 2.0**50}  # change no digit
DECIMAL = {"1e-15": 1e-15, "1e-13": 1e-13, "1e15": 1e15}
UNITS = POWERS_OF_TWO | DECIMAL


def mixed_units(n_voxels):
    """A unit of its own for every voxel, from 1e-15 to 1e15, in powers of two."""
    return 2.0 ** np.random.default_rng(0).integers(-50, 50, n_voxels)


def in_unit(data, unit):
    return replace(data, fmri=(data.fmri * unit).astype(np.float32))


@pytest.fixture(scope="module")
def with_dull_voxels(small_split):
    """The small subject with a voxel that is constant, one of denormal numbers, and an offset in a third."""

    def spoil(data):
        fmri = data.fmri.copy()
        fmri[:, 0] = 7
        fmri[:, 1] *= np.float32(1e-42)
        fmri[:, 2] += 10
        return replace(data, fmri=fmri)

    return spoil(small_split.train), spoil(small_split.test)


@pytest.mark.parametrize("name", available_models())
def test_a_model_says_the_same_in_any_unit(name, small_split, fitted_model):
    expected = fitted_model(name).reconstruct(small_split.test.fmri)
    for unit in (*UNITS.values(), mixed_units(80)):
        model = make_model(name, "smoke").fit(in_unit(small_split.train, unit))
        images = model.reconstruct(in_unit(small_split.test, unit).fmri)
        exact = np.ndim(unit) or unit in POWERS_OF_TWO.values()
        np.testing.assert_allclose(images, expected, rtol=0, atol=0 if exact else 2e-4)


@pytest.mark.parametrize("name", available_models())
def test_constant_and_denormal_voxels_change_nothing(name, with_dull_voxels, tmp_path):
    train, test = with_dull_voxels
    model = make_model(name, "smoke").fit(train)
    images = model.reconstruct(test.fmri)
    assert np.isfinite(images).all()
    elsewhere = test.fmri.copy()
    elsewhere[:, 0] = -1e6  # what does not vary in train has no weight, wherever it is later
    elsewhere[:, 1] = 3e-42
    np.testing.assert_array_equal(model.reconstruct(elsewhere), images)
    again = load_model(model.save(tmp_path / name))
    np.testing.assert_array_equal(again.reconstruct(test.fmri), images)


def verdicts(split):
    """What an audit says, but for the numbers that carry the unit of the voxels."""
    said = {}
    for finding in audit(split).findings:
        if finding.check != "voxel statistics":
            said[finding.check] = (finding.level, finding.text)
    return said


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_the_audit_says_the_same_in_any_unit(unit, small_split):
    scaled = replace(
        small_split, train=in_unit(small_split.train, unit), test=in_unit(small_split.test, unit)
    )
    assert verdicts(scaled) == verdicts(small_split)


def test_the_audit_finds_voxels_of_denormal_numbers_constant(with_dull_voxels, small_split):
    train, test = with_dull_voxels
    result = audit(replace(small_split, train=train, test=test))
    constant = next(f for f in result.findings if f.check == "constant voxels")
    assert constant.values == {"constant": 2}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_encoding_reliability_and_importance_have_no_unit(unit, small_split, fitted_model):
    train = small_split.train
    scaled = in_unit(train, unit)
    np.testing.assert_allclose(
        EncodingModel().fit(scaled).r2_, EncodingModel().fit(train).r2_, atol=1e-4
    )
    groups = np.arange(train.n) // 2
    np.testing.assert_allclose(
        intraclass_correlation(scaled.fmri.astype(float), groups),
        intraclass_correlation(train.fmri.astype(float), groups),
        atol=1e-4,
    )
    readout = linear_readout(fitted_model("ridge"))
    importance = haufe_patterns(scaled.fmri, readout / unit).importance
    np.testing.assert_allclose(
        importance, haufe_patterns(train.fmri, readout).importance, atol=1e-4
    )


@pytest.mark.parametrize("offset", [0, 1e4])
def test_constant_means_rounding_and_not_small(offset):
    random = np.random.default_rng(0)
    rows = random.normal(size=(50, 4))
    rows[:, 3] = 0
    rows = (rows + offset) * 1e-15
    assert learn_scaling(rows.astype(np.float32)).varies.tolist() == [True, True, True, False]


def test_features_of_1e13_lose_nothing():
    split = simulate(n_train=60, n_test=10, n_voxels=100)
    for name in ("ridge", "posterior"):
        scores = []
        for unit in (1, 1e-13):
            model = make_model(name, "smoke").fit(in_unit(split.train, unit))
            rows = in_unit(split.test, unit).fmri
            scores.append(model.score(rows, split.test.images))
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
