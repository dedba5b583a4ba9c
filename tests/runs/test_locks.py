"""One writer a folder, across processes, threads and the objects of one process."""

import gc
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from neuralcollapse import InputError
from neuralcollapse.runs import locks
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.locks import InUse, check_unlocked, hold

CHILD = (
    "import sys; from neuralcollapse.runs.locks import hold; h = hold(sys.argv[1]); print('held', flush=True); input()"
)
TAKE = "import sys; from neuralcollapse.runs.locks import hold; hold(sys.argv[1])"


@contextmanager
def another_process(folder):
    """A process that holds the folder; it is killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "held\n"
        try:
            yield child
        finally:
            child.kill()


def taken_by_another_process(folder) -> bool:
    return subprocess.run([sys.executable, "-c", TAKE, str(folder)], capture_output=True, check=False).returncode == 0


def test_another_process_is_named_and_its_lock_dies_with_it(tmp_path):
    with another_process(tmp_path) as child:
        for ask in (hold, check_unlocked, RunFolder.create, lambda path: RunFolder.create(path, force=True)):
            with pytest.raises(
                InUse, match=rf"is being written by another process \(pid {child.pid} on \S+\): wait for it"
            ):
                ask(tmp_path)
    assert (tmp_path / locks.NAME).is_file()  # it was killed
    held = hold(tmp_path)
    assert not taken_by_another_process(tmp_path)
    held.release()
    assert list(tmp_path.iterdir()) == []
    assert taken_by_another_process(tmp_path)


def test_the_same_thread_may_take_it_again_and_the_last_lets_go(tmp_path):
    first, second = hold(tmp_path), hold(tmp_path / ".." / tmp_path.name)
    first.release()
    first.release()
    assert not taken_by_another_process(tmp_path)
    second.release()
    assert taken_by_another_process(tmp_path)


def test_an_object_that_is_gone_lets_go(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    assert not taken_by_another_process(run.path)
    del run
    gc.collect()
    assert taken_by_another_process(tmp_path / "run")


def test_another_thread_is_refused_until_the_first_has_ended(tmp_path):
    kept, errors = [], []

    def take():
        try:
            kept.append(hold(tmp_path))
        except InUse as error:
            errors.append(str(error))

    own = hold(tmp_path)
    for _ in range(2):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        own.release()
    assert len(errors) == 1
    assert "another thread" in errors[0]
    kept.append(hold(tmp_path))  # that thread has ended


def test_a_folder_that_was_removed_can_be_made_again(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    shutil.rmtree(run.path)
    again = RunFolder.create(tmp_path / "run")
    assert not taken_by_another_process(again.path)
    run.unlock()
    assert not taken_by_another_process(again.path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_neither_has_the_lock_nor_lets_go_of_it(tmp_path):
    held = hold(tmp_path)
    pid = os.fork()
    if pid == 0:
        try:
            hold(tmp_path)
            code = 1
        except InUse:
            held.release()
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not taken_by_another_process(tmp_path)
    held.release()


def test_a_lock_makes_no_folder_look_used(tmp_path):
    with another_process(tmp_path / ".."):
        pass
    (tmp_path / locks.NAME).write_text("pid 1 on nowhere\n")
    run = RunFolder.create(tmp_path)
    run.discard()
    assert not tmp_path.exists()
    with pytest.raises(InputError, match="no run folder"):
        RunFolder.open(tmp_path)
