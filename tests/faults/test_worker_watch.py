import ctypes
import os
import re
import signal
from multiprocessing import active_children
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from mtfixmatch.data.loader import build_eval_loader, eval_records
from mtfixmatch.data.mapper import EvalMapper
from mtfixmatch.runtime.worker_watch import (
    WatchedLoader,
    WatchedMapper,
    _WorkerCheck,
    _WorkerFailure,
)
from mtfixmatch.tasks import build_tasks
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.images import read_image_size
from tests.support.helpers import tiny_config

KILLER = "killer.png"
OTHERS: list = []
TIMEOUT = 3  # seconds; on a busy machine a sound worker may need more than one to start


class Images:
    """A data set of files that are only named, but for those that end or block their worker."""

    def __init__(self, names, mapper):
        self.names, self.mapper = names, mapper

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return self.mapper({"file_name": self.names[index]})


def read(record):
    name = record["file_name"]
    if name.endswith(KILLER):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.endswith(".fifo"):
        read_image_size(name)
    return {"name": name, "pid": os.getpid()}


def watched(names, workers, timeout=TIMEOUT):
    mapper = WatchedMapper(read, workers)
    loader = DataLoader(Images(names, mapper), 1, num_workers=workers, collate_fn=list)
    return WatchedLoader(loader, mapper, timeout)


@pytest.fixture(autouse=True)
def others():
    """Remember the processes that other tests have left."""
    OTHERS[:] = active_children()


def check_no_worker_is_left():
    workers = [child for child in active_children() if child not in OTHERS]
    for worker in workers:
        worker.join(20)
    assert not any(worker.is_alive() for worker in workers)


def failure(loader):
    """What a loop over the loader fails with; none of its workers is left."""
    with pytest.raises(InputError) as caught:
        for _ in loader:
            pass
    check_no_worker_is_left()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("workers", [0, 2])
def test_without_a_fault_nothing_is_changed(workers):
    names = [f"{i}.png" for i in range(5)]
    signals = (signal.SIGCHLD, signal.SIGALRM)
    before = [signal.getsignal(number) for number in signals]
    loader = watched(names, workers, timeout=60)
    assert len(loader) == 5
    assert [item["name"] for (item,) in loader] == names
    assert [signal.getsignal(number) for number in signals] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_killed_worker_is_named_with_its_image():
    message = failure(watched(["a.png", "b.png", f"/data/{KILLER}", "c.png"], 2, timeout=60))
    pattern = (
        r"the data worker \d+ was killed by SIGKILL while reading /data/killer\.png or its labels; "
    )
    assert re.match(pattern, message) and "NUM_WORKERS" in message


def test_a_worker_killed_between_two_images_is_named():
    loader = watched([f"{i}.png" for i in range(50)], 1, timeout=60)
    batches = iter(loader)
    pid = next(batches)[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(InputError, match=f"data worker {pid} was killed by SIGKILL"):
        for _ in batches:
            pass


def test_a_worker_whose_end_is_seen_before_it_can_be_asked_for_is_named():
    """The kernel closes the files of a process, its sentinel too, before it can be waited for."""
    broken, end = os.pipe()
    os.close(end)
    worker = SimpleNamespace(pid=123, sentinel=broken, exitcode=None, kill=lambda: None)
    worker.is_alive = lambda: worker.exitcode is None
    worker.join = lambda timeout: setattr(worker, "exitcode", -9)

    class Batches:
        _workers = (worker,)

        def __iter__(self):
            return self

        def __next__(self):
            raise ConnectionResetError(104, "Connection reset by peer")

    loader = WatchedLoader(Batches(), WatchedMapper(read, 1), 45)
    with pytest.raises(InputError, match="data worker 123 was killed by SIGKILL between two"):
        next(iter(loader))
    os.close(broken)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_read_that_never_ends_is_named(tmp_path, workers):
    """Of a pipe into which nobody writes; without workers the process itself hangs in it."""
    path = tmp_path / "image.fifo"
    os.mkfifo(path)
    message = failure(watched(["a.png", "b.png", str(path), *map(str, range(9))], workers))
    found = re.fullmatch(
        rf"no data for {TIMEOUT} s \(DATALOADER\.TIMEOUT\): process (\d+) hangs while reading "
        f"{path} or its labels",
        message,
    )
    assert found and (int(found[1]) == os.getpid()) == (workers == 0)


def test_another_loader_may_have_installed_pytorchs_handler(tmp_path, monkeypatch):
    """It raises at any place when a worker is killed."""
    before = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    signal_handling._set_SIGCHLD_handler()
    try:
        test_a_read_that_never_ends_is_named(tmp_path, 2)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_stopped_worker_is_named():
    batches = iter(watched([f"{i}.png" for i in range(50)], 2))
    pid = next(batches)[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(InputError, match=rf"TIMEOUT\): .*process {pid} is stopped"):
        for _ in batches:
            pass
    check_no_worker_is_left()


def test_evaluation_is_watched_too(street_root, tmp_path):
    cfg = tiny_config(street_root, "DATALOADER.NUM_WORKERS", 1, "DATALOADER.TIMEOUT", TIMEOUT)
    records = [dict(r) for r in eval_records(cfg, build_tasks(cfg))]
    path = tmp_path / "image.fifo"
    os.mkfifo(path)
    records[2]["file_name"] = str(path)
    assert f"while reading {path}" in failure(build_eval_loader(cfg, records))


def look(timeout, workers=2):
    mapper = WatchedMapper(EvalMapper(), workers)
    processes = [SimpleNamespace(pid=2**30 + i, exitcode=None) for i in range(workers)]
    return _WorkerCheck(mapper.rows, processes, timeout), mapper.rows, processes


def test_only_silence_of_all_or_one_long_read_is_a_fault():
    """By the number of looks: the first one has nothing to compare with."""
    looking, rows, _ = look(timeout=3)
    for i in range(10):  # slow, but alive
        rows[0].name, rows[0].time = b"a.png", float(i)
        looking()
    for _ in range(2):
        rows[1].time += 1
        looking()
    with pytest.raises(_WorkerFailure, match=r"process \d+4 hangs while reading a\.png"):
        rows[1].time += 1
        looking()
    looking, *_ = look(timeout=3)
    for _ in range(2):
        looking()
    with pytest.raises(_WorkerFailure, match="no data worker of .* responds"):
        looking()


def test_no_timeout():
    looking, rows, processes = look(timeout=0)
    rows[0].name = b"a.png"
    for _ in range(200):
        looking()
    processes[1].exitcode = 3
    with pytest.raises(
        _WorkerFailure, match=r"data worker 1073741825 ended with status 3 between two"
    ):
        looking()


def test_a_name_longer_than_its_row_is_cut_off():
    mapper = WatchedMapper(lambda record: {"row": mapper.rows[0].name}, 0)
    assert mapper({"file_name": "ä" * 5000})["row"] == "ä".encode() * 2047 + "ä".encode()[:1]
    assert mapper.rows[0].name == b""
    assert ctypes.sizeof(mapper.rows) == 8 + 4096
