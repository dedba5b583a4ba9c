"""Where an optional package is missing, the hint names the extra that brings it."""

import builtins

import pytest

import neuralcollapse as nc
from neuralcollapse.extras import needed_by, to_install


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("lightning", "pip install 'neuralcollapse[train]'"),
        ("lightning.pytorch", "pip install 'neuralcollapse[train]'"),
        ("datasets", "pip install 'neuralcollapse[hub]'"),
        ("transformers", "pip install transformers"),
        (None, "pip install 'neuralcollapse[train]'"),
    ],
)
def test_the_extra_of_a_package(module, command):
    assert to_install(ImportError("no", name=module)) == command


def without(monkeypatch, missing):
    real = builtins.__import__

    def guarded(name, *arguments):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", guarded)


def test_an_import_that_fails_becomes_one_line(monkeypatch):
    without(monkeypatch, "datasets")
    expected = r"^the hub needs more packages \(.*datasets.*\): pip .*\[hub\]'$"
    with pytest.raises(nc.InputError, match=expected), needed_by("the hub"):
        import datasets  # noqa: F401


@pytest.mark.parametrize(
    ("name", "missing"), [("CollapseCallback", "lightning"), ("CollapseTrainerCallback", "transformers")]
)
def test_a_public_name_without_its_package(monkeypatch, name, missing):
    import sys

    file = {"CollapseCallback": "lightning", "CollapseTrainerCallback": "huggingface"}[name]
    monkeypatch.delitem(sys.modules, f"neuralcollapse.loops.{file}", raising=False)
    monkeypatch.delitem(vars(nc), name, raising=False)
    without(monkeypatch, missing)
    with pytest.raises(
        ModuleNotFoundError, match=rf"^neuralcollapse\.{name} needs more packages \(.*\): pip install"
    ) as got:
        getattr(nc, name)
    assert got.value.name == missing
