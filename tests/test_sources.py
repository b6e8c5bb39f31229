"Claims about where data come from that are too slow, or too contrary, for the notebook."
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from digit69 import simulated_stimuli as stimuli_module, simulation
from digit69.core import DataError, OutputError, set_quiet, set_threads
from digit69.files import sha256
from digit69.splits import shared_stimuli, stimulus_ids
from digit69.readers import write_split
from digit69.datasets import DATASETS, DatasetSpec, cache_folder, fetch, find_local, load_dataset
from digit69.augmentation import augment
from digit69.prior import deduplicate
from digit69.simulation import simulate
from digit69.simulated_stimuli import simulated_stimuli

set_threads(1)
BODY = np.random.default_rng(0).bytes(200_000)


class Server(ThreadingHTTPServer):
    "A file server that can misbehave."
    daemon_threads = True

    def __init__(self):
        self.asked, self.knows_ranges, self.breaks_after, self.silent, self.status, self.body, self.lies = [], True, None, 0, 200, BODY, False
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def known(self, file="mine.npz"):
        return DatasetSpec("mine", file, f"http://127.0.0.1:{self.server_port}/{file}", sha256(BODY), "nobody", "none")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        s = self.server
        wanted = self.headers.get("Range")
        s.asked.append(wanted)
        time.sleep(s.silent)
        start = int(wanted[6:-1]) if wanted and s.knows_ranges else 0
        if start >= len(s.body): return self.send_error(416)
        if s.status != 200: return self.send_error(s.status)
        self.send_response(206 if wanted and s.knows_ranges else 200)
        if wanted and s.knows_ranges: self.send_header("Content-Range", f"bytes {0 if s.lies else start}-{len(s.body) - 1}/{len(s.body)}")
        self.send_header("Content-Length", str(len(s.body) - start))
        self.end_headers()
        self.wfile.write(s.body[start:s.breaks_after])


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("DIGIT69_CACHE", str(tmp_path/"cache"))
    monkeypatch.delenv("DIGIT69_DATA", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"): monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    set_quiet(False)
    yield tmp_path
    set_quiet(False)


@pytest.fixture
def server():
    s = Server()
    yield s
    s.shutdown(); s.server_close()


def in_cache(): return sorted(p.name for p in cache_folder().iterdir()) if cache_folder().exists() else []


def closed_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# ---- fetching

def test_a_broken_download_goes_on_where_it_stopped(server):
    server.breaks_after = 120_000
    with pytest.raises(DataError, match="broke after .* of 200,000 bytes; run it again"): fetch(server.known())
    kept = (cache_folder()/"mine.npz.part").stat().st_size
    assert 100_000 < kept <= 120_000 and in_cache() == ["mine.npz.part"]
    server.breaks_after = None
    assert fetch(server.known()).read_bytes() == BODY
    assert server.asked == [None, f"bytes={kept}-"] and in_cache() == ["mine.npz"]
    fetch(server.known())
    assert len(server.asked) == 2                                         # the cache needs no server


@pytest.mark.parametrize("how", [dict(knows_ranges=False), dict(lies=True)])
def test_a_server_that_does_not_go_on_from_there_is_asked_for_the_whole(server, how):
    cache_folder().mkdir()
    (cache_folder()/"mine.npz.part").write_bytes(b"some older attempt")
    for k, v in how.items(): setattr(server, k, v)
    assert fetch(server.known()).read_bytes() == BODY
    assert in_cache() == ["mine.npz"]


def test_a_part_longer_than_the_file_is_started_over(server):
    cache_folder().mkdir()
    (cache_folder()/"mine.npz.part").write_bytes(BODY + b"more")
    assert fetch(server.known()).read_bytes() == BODY
    assert server.asked == [f"bytes={len(BODY) + 4}-", None]


@pytest.mark.parametrize("part", [b"", b"not how it begins"])
def test_a_wrong_file_is_refused_and_leaves_nothing(server, part):
    cache_folder().mkdir()
    (cache_folder()/"mine.npz.part").write_bytes(part)
    if not part: server.body = b"<html>log in</html>"
    with pytest.raises(DataError, match="not the published mine.npz"): fetch(server.known())
    assert in_cache() == []
    server.body = BODY
    assert fetch(server.known()).read_bytes() == BODY                     # the next attempt is not spoilt by the last


def test_a_damaged_file_in_the_cache_is_fetched_again(server):
    cache_folder().mkdir()
    (cache_folder()/"mine.npz").write_bytes(b"damaged")
    assert fetch(server.known()).read_bytes() == BODY


def test_an_error_of_the_server_is_one_line(server):
    server.status = 404
    with pytest.raises(DataError, match="answers 404 .*DIGIT69_DATA") as e: fetch(server.known())
    assert "\n" not in str(e.value) and in_cache() == []


def test_a_closed_port_is_reported_within_ten_seconds():
    start = time.monotonic()
    with pytest.raises(DataError, match="--data simulated") as e: fetch(replace(DATASETS["digit69"], url=f"http://127.0.0.1:{closed_port()}/x"))
    assert time.monotonic() - start < 10 and "\n" not in str(e.value)


def test_a_silent_server_is_given_up_within_ten_seconds(server):
    server.silent = 30
    start = time.monotonic()
    with pytest.raises(DataError, match="no answer within 8 seconds"): fetch(server.known())
    assert time.monotonic() - start < 10


def test_a_hanging_name_lookup_is_given_up_within_ten_seconds(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(DataError, match="no answer within 8 seconds"): fetch(replace(DATASETS["digit69"], url="http://a-name-that-hangs.invalid/x"))
    assert time.monotonic() - start < 10


def test_a_cache_that_cannot_be_written_is_an_output_error(server, place, monkeypatch):
    (place/"file").write_text("in the way")
    monkeypatch.setenv("DIGIT69_CACHE", str(place/"file"/"cache"))
    with pytest.raises(OutputError, match="set DIGIT69_CACHE"): fetch(server.known())


def test_fetching_says_whose_data_it_is(server, capsys):
    fetch(replace(server.known(), owner="Ada", terms="ask her"))
    assert "data of Ada. Terms: ask her." in capsys.readouterr().err


# ---- resolving

@pytest.fixture
def offline(monkeypatch):
    for name, k in list(DATASETS.items()): monkeypatch.setitem(DATASETS, name, replace(k, url=f"http://127.0.0.1:{closed_port()}/{k.file}"))


def test_auto_takes_data_then_cache_then_download_then_simulated(place, server, monkeypatch, capsys):
    splits = {where: simulate(8, 4, 20, seed=i) for i, where in enumerate(("pointed", "cached", "served"))}
    for where, s in splits.items(): (place/where).mkdir(); write_split(s, place/where/"digit69_28x28.mat")
    server.body = (place/"served"/"digit69_28x28.mat").read_bytes()
    entry = replace(DATASETS["digit69"], url=f"http://127.0.0.1:{server.server_port}/x")
    taken = lambda: (s := load_dataset("auto")) and (s.provenance["source"].split(":")[0], s.train.fmri.sum())
    expect = lambda where, word: (word, splits[where].train.fmri.sum())

    monkeypatch.setenv("DIGIT69_DATA", str(place/"pointed"))
    monkeypatch.setitem(DATASETS, "digit69", replace(entry, sha256=sha256(place/"cached"/"digit69_28x28.mat")))
    cache_folder().mkdir()
    (cache_folder()/"digit69_28x28.mat").write_bytes((place/"cached"/"digit69_28x28.mat").read_bytes())
    assert taken() == expect("pointed", "$DIGIT69_DATA")
    assert "$DIGIT69_DATA" in capsys.readouterr().err
    monkeypatch.delenv("DIGIT69_DATA")
    assert taken() == expect("cached", "the cache")
    assert server.asked == [] and "Donders" in capsys.readouterr().err
    monkeypatch.setitem(DATASETS, "digit69", replace(entry, sha256=sha256(server.body)))
    assert taken() == expect("served", "a download") and len(server.asked) == 1
    assert taken() == expect("served", "the cache") and len(server.asked) == 1
    (cache_folder()/"digit69_28x28.mat").unlink()
    server.status = 503
    capsys.readouterr()
    assert load_dataset("auto").provenance["source"] == "simulated"
    err = capsys.readouterr().err
    assert "503" in err and "no person was measured" in err


def test_a_missing_place_is_a_mistake_not_a_reason_to_look_elsewhere(place, offline, monkeypatch):
    monkeypatch.setenv("DIGIT69_DATA", str(place/"nowhere"))
    for spec in ("auto", "digit69", "miyawaki"):
        with pytest.raises(DataError, match="does not exist: correct it or unset it"): load_dataset(spec)


def test_unreadable_data_are_told_not_replaced(place, offline, monkeypatch):
    (place/"digit69_28x28.mat").write_bytes(b"not a mat file")
    monkeypatch.setenv("DIGIT69_DATA", str(place))
    with pytest.raises(DataError, match="not a readable .mat"): load_dataset("auto")


def test_data_may_be_one_file_of_any_name(place, offline, monkeypatch):
    mine = simulate(8, 4, 20)
    monkeypatch.setenv("DIGIT69_DATA", str(write_split(mine, place/"subject7.npz")))
    assert load_dataset("auto").digest == mine.digest
    with pytest.raises(DataError, match="could not be fetched"): load_dataset("miyawaki")


@pytest.mark.parametrize("name,file", [("digit69", "digit69_dev.mat"), ("miyawaki", "miyawaki_structured_28x28.mat"), ("mnist", "mnist69.npz"), ("mnist", "mnist.npz")])
def test_a_folder_may_hold_any_of_them(place, monkeypatch, name, file):
    (place/file).write_bytes(b"x")
    monkeypatch.setenv("DIGIT69_DATA", str(place))
    assert find_local(name) == place/file and all(find_local(n) is None for n in DATASETS if n != name)


def test_a_word_that_is_nothing_lists_the_choices():
    for word in ("digit96", "mnist", "no/such/file.mat", ""):
        with pytest.raises(DataError) as e: load_dataset(word)
        assert "\n" not in str(e.value) and "--data" in str(e.value)


# ---- the simulated subject

def test_train_and_test_share_neither_stimuli_nor_originals(monkeypatch):
    parents = []
    real = stimuli_module.augment
    monkeypatch.setattr(stimuli_module, "augment", lambda images, *a, **k: (parents.append({i.tobytes() for i in images}), real(images, *a, **k))[1])
    for n_train, n_test in ((90, 10), (900, 100), (2, 1), (3, 300)):
        parents.clear()
        (train, t1), (test, t2) = simulated_stimuli(n_train, n_test)
        used = dict(zip(("train six", "test six", "train nine", "test nine"), parents))
        assert not used["train six"] & used["test six"] and not used["train nine"] & used["test nine"]
        both = np.concatenate([train, test])
        assert len(np.unique(stimulus_ids(both))) == len(both) == n_train + n_test
        assert abs(np.diff(np.bincount(t1, minlength=3)[1:])) <= 1 and (np.diff(t2) >= 0).all()


def test_trials_differ_and_chunks_do_not_matter(monkeypatch):
    whole = simulate(40, 10, 300)
    monkeypatch.setattr(sources, "CHUNK", 7)
    assert np.allclose(simulate(40, 10, 300).train.fmri, whole.train.fmri, atol=1e-5)
    s = simulation.draw_subject(100)
    twice = np.repeat(whole.train.images[:1], 2, 0)
    a, b = simulation.simulate_responses(s, twice, .3)
    assert np.abs(a - b).mean() > .1
    a, b = simulation.simulate_responses(s, twice, 0)
    assert np.array_equal(a, b)


def test_a_simulated_subject_survives_its_file(place):
    s = simulate(20, 6, 40)
    assert load_dataset(write_split(s, place/"s.mat")).digest == load_dataset(write_split(s, place/"s.npz")).digest == s.digest
    assert len(shared_stimuli(s)) == 0


def test_ten_thousand_stimuli_in_memory_near_the_result():
    "10,000 rows x 5,000 voxels are 190 MB; the peak stays below two copies (the result, and the one a checked data set makes) and the stimuli."
    code = ("import resource; from digit69.core import quiet, set_threads; quiet(); set_threads(1)\n"
            "from digit69.sources import augment, simulate, simulated_stimuli; simulate(100, 10, 100)\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
            "before = peak(); s = simulate(9000, 1000, 5000); print(peak() - before, s.train.fmri.nbytes + s.test.fmri.nbytes >> 20)")
    grown, size = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout.split())
    assert grown < 2.3 * size + 250, (grown, size)


# ---- prior

def test_a_purge_finds_copies_among_thousands_in_seconds():
    references = simulated_stimuli(90, 10)[0][0]
    many = augment(references, 12_000, strength=2.5, seed=1)[0]
    many[[5, 7000, 11_999]] = references[:3]
    start = time.monotonic()
    out = deduplicate(many, references)
    assert time.monotonic() - start < 20
    assert out.n_exact == 3 and not out.kept[[5, 7000, 11_999]].any() and len(out.images) == out.kept.sum()
    none = deduplicate(many[:0], references)
    assert (none.n_exact, none.n_near, len(none.images)) == (0, 0, 0)


def test_importing_is_light():
    code = "import sys, digit69.sources; print([m for m in ('torch', 'sklearn', 'scipy', 'requests', 'pooch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_only_the_published_file_holds_a_published_split(tmp_path, monkeypatch):
    path = write_split(simulate(20, 4, 30), tmp_path / "mine.mat")
    assert load_dataset(str(path)).provenance["protocol"] == "the split of the file"
    monkeypatch.setitem(DATASETS, "digit69", replace(DATASETS["digit69"], sha256=sha256(path)))
    assert load_dataset(str(path)).provenance["protocol"] == "published split"
