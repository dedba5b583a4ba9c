import pytest

import neuralcollapse as nc
from neuralcollapse import InputError
from neuralcollapse.reproduce import ExperimentFolder, run_one


@pytest.mark.parametrize("wrong", [None, 3, {}, ["a"], b"run"])
def test_what_is_no_path_is_refused_in_a_line(wrong):
    for call, what in (
        (run_one, "an experiment's folder"),
        (lambda path, name: nc.write_page(path), "a run folder"),
        (lambda path, name: nc.read_run(path), "a run folder"),
        (lambda path, name: nc.resume(path), "a run folder"),
        (lambda path, name: nc.OODScorer.load(path), "a scorer's file"),
        (lambda path, name: ExperimentFolder.create("optimizers", "smoke", path), "a folder for the experiment"),
    ):
        with pytest.raises(InputError, match=f"expected the path of {what}, got .*: give a str or a pathlib.Path"):
            call(wrong, "seed0")
