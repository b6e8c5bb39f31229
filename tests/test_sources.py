"""Where data come from: claims that are too slow, or too contrary, for the notebooks."""

import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from digit69 import download, simulation
from digit69 import simulated_stimuli as stimuli_module
from digit69.augmentation import augment
from digit69.core import DataError, OutputError, set_quiet, set_threads
from digit69.datasets import (
    DATASETS,
    DatasetSpec,
    data_choices,
    describe_dataset,
    fetch,
    find_local,
    label_names,
    load_dataset,
    register_dataset,
)
from digit69.download import cache_folder
from digit69.files import sha256
from digit69.outside_images import deduplicate
from digit69.readers import write_split
from digit69.simulated_stimuli import simulated_stimuli
from digit69.simulation import simulate
from digit69.splits import shared_stimuli, stimulus_ids

set_threads(1)
PUBLISHED = np.random.default_rng(0).bytes(200_000)


class Handler(BaseHTTPRequestHandler):
    """Serves one file, as well or badly as the server is told to."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        time.sleep(self.server.seconds_of_silence)
        self.send_response(self.server.status)
        self.end_headers()

    def do_GET(self):
        self.server.n_downloads += 1
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body[: self.server.breaks_after])


class Server(ThreadingHTTPServer):
    """A file server that can misbehave."""

    daemon_threads = True

    def __init__(self):
        self.body = PUBLISHED
        self.status = 200
        self.breaks_after = None
        self.seconds_of_silence = 0
        self.n_downloads = 0
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/mine.npz"

    @property
    def spec(self):
        return DatasetSpec(
            "mine", "mine.npz", self.url, sha256(PUBLISHED), "Ada", "ask her", reader=print
        )


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder to work in; the cache lies in it, and no data are pointed at."""
    monkeypatch.setenv("DIGIT69_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIGIT69_DATA", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    set_quiet(False)
    yield tmp_path
    set_quiet(False)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def files_in_cache():
    if not cache_folder().exists():
        return []
    return sorted(file.name for file in cache_folder().iterdir())


def url_of_closed_port():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}/x"


# --- fetching -----------------------------------------------------------------------------------------------


def test_a_fetched_file_is_verified_kept_and_said_to_be_somebodys(server, capsys):
    assert fetch(server.spec).read_bytes() == PUBLISHED
    assert "data of Ada. Terms: ask her." in capsys.readouterr().err
    fetch(server.spec)
    assert server.n_downloads == 1  # the cache needs no server
    assert files_in_cache() == ["mine.npz"]


def test_a_broken_download_leaves_nothing_and_may_be_tried_again(server):
    server.breaks_after = 120_000
    with pytest.raises(
        DataError, match="the connection to 127.0.0.1 broke .*; run it again"
    ) as error:
        fetch(server.spec)
    assert "\n" not in str(error.value)
    assert files_in_cache() == []
    server.breaks_after = None
    assert fetch(server.spec).read_bytes() == PUBLISHED


def test_a_wrong_file_is_refused_and_leaves_nothing(server):
    server.body = b"<html>log in</html>"
    with pytest.raises(DataError, match="not the published mine.npz"):
        fetch(server.spec)
    assert files_in_cache() == []
    server.body = PUBLISHED
    assert fetch(server.spec).read_bytes() == PUBLISHED


def test_a_damaged_file_in_the_cache_is_fetched_again(server):
    cache_folder().mkdir()
    (cache_folder() / "mine.npz").write_bytes(b"damaged")
    assert fetch(server.spec).read_bytes() == PUBLISHED


def test_an_error_of_the_server_is_one_line(server):
    server.status = 404
    with pytest.raises(DataError, match="answers 404 .*DIGIT69_DATA") as error:
        fetch(server.spec)
    assert "\n" not in str(error.value)
    assert files_in_cache() == []


def test_a_closed_port_is_reported_at_once():
    started = time.monotonic()
    with pytest.raises(DataError, match="no connection .*--data simulated") as error:
        fetch(replace(DATASETS["digit69"], url=url_of_closed_port()))
    assert time.monotonic() - started < 10
    assert "\n" not in str(error.value)


def test_patience_with_a_server_is_less_than_ten_seconds():
    assert download.TIMEOUT < 10


def test_a_silent_server_is_given_up_in_time(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 1)
    server.seconds_of_silence = 30
    started = time.monotonic()
    with pytest.raises(DataError, match="no answer within 1 seconds"):
        fetch(server.spec)
    assert time.monotonic() - started < 3


def test_a_hanging_name_lookup_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30))
    started = time.monotonic()
    with pytest.raises(DataError, match="no answer within 1 seconds"):
        fetch(replace(DATASETS["digit69"], url="http://a-name-that-hangs.invalid/x"))
    assert time.monotonic() - started < 3


def test_a_cache_that_cannot_be_written_is_an_output_error(server, folder, monkeypatch):
    (folder / "file").write_text("in the way")
    monkeypatch.setenv("DIGIT69_CACHE", str(folder / "file" / "cache"))
    with pytest.raises(OutputError, match="set DIGIT69_CACHE"):
        fetch(server.spec)


# --- which source is taken ----------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    """No registered data set can be fetched."""
    for name, spec in list(DATASETS.items()):
        monkeypatch.setitem(DATASETS, name, replace(spec, url=url_of_closed_port()))


@pytest.fixture
def three_sources(folder, server):
    """The data set as three different files: pointed at, in the cache, served."""
    splits = {}
    for seed, place in enumerate(("pointed", "cache", "served")):
        splits[place] = simulate(8, 4, 20, seed=seed)
        (folder / place).mkdir()
        write_split(splits[place], folder / place / "digit69_28x28.mat")
    server.body = (folder / "served" / "digit69_28x28.mat").read_bytes()
    return splits


def assert_auto_takes(split, source):
    loaded = load_dataset("auto")
    assert np.array_equal(loaded.train.fmri, split.train.fmri)
    assert loaded.provenance["source"].split(":")[0] == source


def test_auto_takes_data_then_cache_then_download_then_simulated(
    folder, server, three_sources, monkeypatch, capsys
):
    cached = folder / "cache" / "digit69_28x28.mat"
    spec = replace(DATASETS["digit69"], url=server.url, sha256=sha256(cached))
    monkeypatch.setitem(DATASETS, "digit69", spec)

    monkeypatch.setenv("DIGIT69_DATA", str(folder / "pointed"))
    assert_auto_takes(three_sources["pointed"], "$DIGIT69_DATA")
    assert "$DIGIT69_DATA" in capsys.readouterr().err

    monkeypatch.delenv("DIGIT69_DATA")
    assert_auto_takes(three_sources["cache"], "the cache")
    assert server.n_downloads == 0
    assert "Donders" in capsys.readouterr().err

    monkeypatch.setitem(DATASETS, "digit69", replace(spec, sha256=sha256(server.body)))
    assert_auto_takes(three_sources["served"], "a download")
    assert_auto_takes(three_sources["served"], "the cache")
    assert server.n_downloads == 1

    cached.unlink()
    server.status = 503
    capsys.readouterr()
    assert load_dataset("auto").provenance["source"] == "simulated"
    remarks = capsys.readouterr().err
    assert "503" in remarks and "no person was measured" in remarks


def test_a_missing_place_is_a_mistake_not_a_reason_to_look_elsewhere(
    folder, offline, monkeypatch
):
    monkeypatch.setenv("DIGIT69_DATA", str(folder / "nowhere"))
    for word in ("auto", "digit69", "miyawaki"):
        with pytest.raises(DataError, match="does not exist: correct it or unset it"):
            load_dataset(word)


def test_unreadable_data_are_told_not_replaced(folder, offline, monkeypatch):
    (folder / "digit69_28x28.mat").write_bytes(b"not a mat file")
    monkeypatch.setenv("DIGIT69_DATA", str(folder))
    with pytest.raises(DataError, match="not a readable .mat"):
        load_dataset("auto")


def test_data_may_be_one_file_of_any_name(folder, offline, monkeypatch):
    own = simulate(8, 4, 20)
    monkeypatch.setenv("DIGIT69_DATA", str(write_split(own, folder / "subject7.npz")))
    assert load_dataset("auto").digest == own.digest
    with pytest.raises(DataError, match="could not be fetched"):
        load_dataset("miyawaki")


@pytest.mark.parametrize(
    "name,file",
    [
        ("digit69", "digit69_dev.mat"),
        ("miyawaki", "miyawaki_structured_28x28.mat"),
        ("mnist", "mnist69.npz"),
        ("mnist", "mnist.npz"),
    ],
)
def test_a_folder_may_hold_any_of_the_data_sets(folder, monkeypatch, name, file):
    (folder / file).write_bytes(b"x")
    monkeypatch.setenv("DIGIT69_DATA", str(folder))
    assert find_local(name) == folder / file
    assert all(find_local(other) is None for other in DATASETS if other != name)


def test_a_word_that_is_nothing_lists_the_choices():
    for word in ("digit96", "mnist", "no/such/file.mat", ""):
        with pytest.raises(DataError, match="--data") as error:
            load_dataset(word)
        assert "\n" not in str(error.value)


def test_only_the_published_file_holds_a_published_split(folder, monkeypatch):
    path = write_split(simulate(20, 4, 30), folder / "mine.mat")
    assert load_dataset(str(path)).provenance["protocol"] == "the split of the file"
    monkeypatch.setitem(DATASETS, "digit69", replace(DATASETS["digit69"], sha256=sha256(path)))
    assert load_dataset(str(path)).provenance["protocol"] == "published split"


def test_a_data_set_from_outside_is_fetched_read_and_described_like_ours(
    folder, server, monkeypatch, capsys
):
    own = simulate(8, 4, 20)

    def read_mine(path):
        assert path.read_bytes() == PUBLISHED
        return own

    monkeypatch.setattr("digit69.datasets.DATASETS", dict(DATASETS))
    register_dataset(replace(server.spec, reader=read_mine, label_names={1: "ring"}))
    split = load_dataset("mine")
    assert split.digest == own.digest
    assert split.provenance["source"] == "a download: mine.npz"
    assert split.provenance["owner"] == "Ada"
    assert "Ada" in describe_dataset("mine") and "Ada" in capsys.readouterr().err
    assert label_names("mine fold 3") == {1: "ring"}
    assert "mine" in data_choices()
    with pytest.raises(DataError, match="already a data set named 'mine'"):
        register_dataset(server.spec)


# --- the simulated subject ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_train,n_test", [(90, 10), (900, 100), (2, 1), (3, 300)])
def test_train_and_test_share_neither_stimuli_nor_originals(n_train, n_test, monkeypatch):
    originals = []

    vary_legibly = stimuli_module.vary_legibly

    def recording(images, *args):
        originals.append({image.tobytes() for image in images})
        return vary_legibly(images, *args)

    monkeypatch.setattr(stimuli_module, "vary_legibly", recording)
    (train, train_labels), (test, test_labels) = simulated_stimuli(n_train, n_test)
    train_sixes, test_sixes, train_nines, test_nines = originals
    assert not train_sixes & test_sixes
    assert not train_nines & test_nines
    both = np.concatenate([train, test])
    assert len(np.unique(stimulus_ids(both))) == len(both) == n_train + n_test
    n_sixes, n_nines = np.bincount(train_labels, minlength=3)[1:]
    assert abs(n_sixes - n_nines) <= 1
    assert (np.diff(test_labels) >= 0).all()


def test_trials_differ_unless_there_is_no_noise():
    subject = simulation.draw_subject(100)
    twice = np.repeat(simulated_stimuli(2, 1)[0][0][:1], 2, 0)
    first, second = simulation.simulate_responses(subject, twice, noise_sd=0.3)
    assert np.abs(first - second).mean() > 0.1
    first, second = simulation.simulate_responses(subject, twice, noise_sd=0)
    assert np.array_equal(first, second)


def test_the_size_of_chunks_does_not_matter(monkeypatch):
    in_one_chunk = simulate(40, 10, 300).train.fmri
    monkeypatch.setattr(simulation, "ROW_CHUNK", 7)
    assert np.allclose(simulate(40, 10, 300).train.fmri, in_one_chunk, atol=1e-5)


def test_a_simulated_subject_survives_its_file(folder):
    split = simulate(20, 6, 40)
    assert load_dataset(write_split(split, folder / "s.mat")).digest == split.digest
    assert load_dataset(write_split(split, folder / "s.npz")).digest == split.digest
    assert len(shared_stimuli(split)) == 0


MEASURE_MEMORY = """
import resource
from digit69.core import set_quiet, set_threads
from digit69.simulation import simulate

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

set_quiet()
set_threads(1)
simulate(100, 10, 100)
before = peak_mib()
split = simulate(1800, 200, 12_000)
print(peak_mib() - before, split.train.fmri.nbytes + split.test.fmri.nbytes >> 20)
"""


def test_thousands_of_stimuli_take_memory_near_that_of_the_result():
    """The peak stays below two copies (the result, and the one a checked data set makes) and the stimuli."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY], capture_output=True, text=True, check=True
    )
    grown, size = map(int, done.stdout.split())
    assert size > 90
    assert grown < 2.3 * size + 150


# --- the prior ----------------------------------------------------------------------------------------------


def test_deduplication_finds_copies_among_thousands_in_seconds():
    references = simulated_stimuli(90, 10)[0][0]
    candidates = augment(references, 12_000, strength=2.5, seed=1)[0]
    candidates[[5, 7000, 11_999]] = references[:3]
    started = time.monotonic()
    result = deduplicate(candidates, references)
    assert time.monotonic() - started < 20
    assert result.n_exact == 3
    assert not result.kept[[5, 7000, 11_999]].any()
    assert len(result.images) == result.kept.sum()


def test_deduplication_of_nothing_is_nothing():
    references = simulated_stimuli(4, 2)[0][0]
    result = deduplicate(references[:0], references)
    assert (result.n_exact, result.n_near, len(result.images)) == (0, 0, 0)


def test_importing_data_sets_is_light():
    heavy = ("torch", "sklearn", "scipy", "requests", "pooch")
    code = (
        f"import sys, digit69.datasets; print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
