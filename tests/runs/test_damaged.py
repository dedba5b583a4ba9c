"""Damaged, hostile and odd run folders: read as a valid run, or refused in one line, in bounded memory and time."""

import io
import json
import random
import re
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
import yaml

from neuralcollapse import InputError
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.reading import read_run
from neuralcollapse.runs.records import Geometry, Record, read_geometry
from tests.helpers import changed_somewhere

CONFIG = {"network": "mlp", "data": "digits", "epochs": 4, "layers": ["a.b"], "seed": 0, "checkpoint_every": 2}
ENVIRONMENT = {"neuralcollapse": "0.1.0", "class_names": ["a", "b", "c"], "class_counts": [5, 5, 5], "parameters": 9}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small run, written by hand."""
    run = RunFolder.create(tmp_path_factory.mktemp("whole") / "run")
    run.write_text("config.yaml", yaml.safe_dump(CONFIG))
    run.write_text("environment.json", json.dumps(ENVIRONMENT))
    source = np.random.default_rng(0)
    for epoch in (0, 2, 4):
        numbers = {"loss": 0.5, "accuracy": 1.0}
        run.append(
            Record(epoch, 1.5, 0.1, numbers, numbers, {"nc1": 0.2, "nc2": float("nan")}, {}, {"a.b": {"nc1": 1.0}})
        )
        means, weight = source.normal(size=(2, 3, 4))
        run.write_geometry(Geometry(epoch, means, means.mean(0), weight, np.zeros(3)))
        run.checkpoint(epoch).write_bytes(b"weights")
    run.unlock()
    return run.path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def refused(path) -> str:
    with pytest.raises(InputError) as error:
        read_run(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


def test_the_run_itself_is_read(whole):
    run = read_run(whole)
    assert [record.epoch for record in run.records] == [0, 2, 4]
    assert [geometry.epoch for geometry in run.geometries] == [0, 2, 4]
    assert run.class_names == ["a", "b", "c"]


RECORDS = {
    "text for a number": ({"seconds": "1.5"}, "expected a number, got '1.5'"),
    "text in a group": ({"measures": {"nc1": "0.2"}}, "expected a number"),
    "a truth value": ({"train": {"loss": True}}, "expected a number, got True"),
    "infinite": ({"learning_rate": 1e999}, "expected a finite number"),
    "beyond floats": ({"test": {"loss": 10**400}}, "bits"),
    "an unknown source": ({"source": "dream"}, "expected source to be one of eval, online"),
    "a source of another type": ({"source": ["eval"]}, "expected source"),
    "a list for a group": ({"head": [1]}, "expected head as numbers by name"),
    "numbers for layers": ({"layers": {"a": 1}}, "expected a as numbers by name"),
    "a negative epoch": ({"epoch": -1}, "expected epoch as a number from 0"),
    "half an epoch": ({"epoch": 1.5}, "expected epoch"),
    "a true epoch": ({"epoch": True}, "expected epoch"),
    "an epoch beyond counting": ({"epoch": 10**30}, "expected epoch"),
    "another field": ({"colour": 1}, "expected a mapping of epoch, seconds"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_other_values_is_named_by_its_line(name, copy):
    change, message = RECORDS[name]
    lines = (copy / "records.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    (copy / "records.jsonl").write_text("\n".join(lines))
    found = refused(copy)
    assert "records.jsonl line 2 is not a record" in found
    assert message in found


def test_records_out_of_order_are_put_in_order(copy):
    before = read_run(copy).records
    lines = (copy / "records.jsonl").read_text().splitlines()
    (copy / "records.jsonl").write_text("\n".join([lines[0], lines[2], lines[1]]))
    assert read_run(copy).records == before


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b""], ids=["bom", "plain"])
@pytest.mark.parametrize("end", [b"\r\n", b"\n\n"], ids=["crlf", "blank lines"])
def test_what_editors_do_to_records_does_no_harm(copy, start, end):
    file = copy / "records.jsonl"
    file.write_bytes(start + file.read_bytes().replace(b"\n", end))
    assert read_run(copy).records == read_run(copy).records
    assert len(read_run(copy).records) == 3


@pytest.mark.parametrize("name", ["records.jsonl", "config.yaml", "environment.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"\x00" * 100,
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"{a: " * 3000,
        b"- " * 3000,
        b"[1]",
        b'"text"',
        b"9" * 10_000,
        b'{"epoch": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda content: repr(content[:8]),
)
def test_text_that_is_no_mapping_is_refused(name, content, copy):
    (copy / name).write_bytes(content)
    assert name in refused(copy)


YAML = {
    "bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(f"{y}: &{y} [{','.join([f'*{x}'] * 9)}]" for x, y in zip("abcdefgh", "bcdefghi", strict=True)),
    "merge bomb": "a: &a {x: 1}\n"
    + "\n".join(f"{y}: &{y} {{<<: [{','.join([f'*{x}'] * 9)}]}}" for x, y in zip("abcdefgh", "bcdefghi", strict=True)),
    "cycle": "a: &a [*a]",
    "python": "a: !!python/object/apply:os.system ['true']",
    "tag": "a: !!int x",
    "key": "? [1, 2]\n: 3",
    "large": "a: " + "x" * 2**19,
}


@pytest.mark.parametrize("name", YAML)
@pytest.mark.parametrize("file", ["config.yaml", "environment.json"])
def test_yaml_that_is_more_than_data_is_refused(name, file, copy):
    (copy / file).write_text(YAML[name])
    assert f"{file} is damaged" in refused(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_counts": ["5", 5, 5]}, "class_counts as a list of numbers"),
        ({"class_counts": [5, 5]}, "counts 2 classes, and the geometry has 3"),
        ({"class_counts": [5, 5, -5]}, "class_counts"),
        ({"class_names": 3}, "class_names as a list"),
        ({"parameters": "9"}, "parameters as a whole number"),
    ],
)
def test_an_environment_of_other_values_is_refused(change, message, copy):
    (copy / "environment.json").write_text(json.dumps(ENVIRONMENT | change))
    assert message in refused(copy)


def test_what_users_keep_in_a_configuration_may_be_anything(copy):
    for value in (12, "text", None, {"a": [1]}, [1, None], True, 1.5):
        (copy / "config.yaml").write_text(json.dumps(dict.fromkeys(CONFIG, value) | {"mine": value}))
        assert len(read_run(copy).records) == 3


def arrays(path):
    with np.load(path) as loaded:
        return dict(loaded)


GEOMETRY = {
    "objects": (lambda a: a | {"means": a["means"].astype(object)}, "pickled objects"),
    "text": (lambda a: a | {"bias": a["bias"].astype("U4")}, "expected bias as floats"),
    "complex": (lambda a: a | {"weight": a["weight"].astype(complex)}, "expected weight as floats"),
    "integers": (lambda a: a | {"means": a["means"].astype(int)}, "expected means as floats"),
    "three axes": (lambda a: a | {"means": a["means"][None]}, "expected means of shape"),
    "transposed": (lambda a: a | {"weight": a["weight"].T}, r"expected weight of shape \(3, 4\)"),
    "fewer classes": (lambda a: a | {"bias": a["bias"][:2]}, r"expected bias of shape \(3\)"),
    "another mean": (lambda a: a | {"global_mean": np.zeros(5, "f4")}, "global_mean"),
    "nothing": (lambda a: {name: value[:0] for name, value in a.items()}, "expected means of shape"),
    "all of fewer": (lambda a: a | {name: a[name][:2] for name in ("means", "weight", "bias")}, "those before it"),
    "missing": (lambda a: {name: value for name, value in a.items() if name != "weight"}, "no array weight"),
    "infinite": (lambda a: a | {"weight": a["weight"] * np.float32(np.inf)}, "not a number"),
    "huge": (lambda a: a | {"means": a["means"] * np.float32(1e30)}, "beyond"),
    "undefined": (lambda a: a | {"global_mean": a["global_mean"] * np.nan}, "not a number"),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_a_geometry_of_another_kind_is_named(name, copy):
    change, message = GEOMETRY[name]
    file = copy / "geometry/epoch-00002.npz"
    np.savez(file, **change(arrays(file)))
    found = refused(copy)
    assert f"{file} is damaged" in found
    assert re.search(message, found)


def test_geometries_of_other_floats_and_with_undefined_means_are_read(copy):
    file = copy / "geometry/epoch-00002.npz"
    kept = arrays(file)
    for kind in ("f2", "f8", ">f4"):
        np.savez_compressed(file, **{name: value.astype(kind) for name, value in kept.items()}, more=np.array([{}]))
        np.testing.assert_allclose(read_geometry(file).means, kept["means"], rtol=1e-2)
    kept["means"][1] = np.nan
    np.savez(file, **kept)
    assert np.isnan(read_run(copy).geometries[1].means[1]).all()


def bomb(declared: int, real: int) -> bytes:
    """An .npz of zeros that declares so many bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        shape = (declared // 4 // 4, 4)
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for name in ("means", "weight"):
            archive.writestr(f"{name}.npy", header.getvalue() + b"\0" * real)
    return buffer.getvalue()


@pytest.mark.parametrize(("declared", "real"), [(2**27, 2**27), (2**40, 2**10), (2**62, 0), (2**10, 2**27)])
def test_a_bomb_is_refused_before_it_is_inflated(declared, real, copy):
    (copy / "geometry/epoch-00002.npz").write_bytes(bomb(declared, real))
    tracemalloc.start()
    try:
        assert "epoch-00002.npz is damaged" in refused(copy)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


# At random: bytes and values of each file. Many more were tried by hand.

VALUES = [
    None,
    True,
    "text",
    "",
    -1,
    1e999,
    float("nan"),
    {},
    [],
    [[]],
    {"a": {"b": {}}},
    10**400,
    10**30,
    "\x00",
    "\ud800",
]
PIECES = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"NaN",
    b"1e999",
    b"&a [*a]",
    b"*a",
    b"[" * 999,
    b"{",
    b"!!set ",
]


def garbled(content: bytes, source) -> bytes:
    """The bytes with a bit flipped, a piece put in, a part cut out, or the end cut off."""
    found = bytearray(content)
    at = source.randrange(len(found))
    kind = source.randrange(4)
    if kind == 0:
        found[at] ^= 1 << source.randrange(8)
    elif kind == 1:
        found[at:at] = source.choice(PIECES)
    elif kind == 2:
        del found[at : at + source.randrange(1, 60)]
    else:
        del found[at:]
    return bytes(found)


@pytest.mark.parametrize("kind", ["bytes", "values"])
@pytest.mark.parametrize("name", ["records.jsonl", "config.yaml", "environment.json", "geometry/epoch-00002.npz"])
def test_whatever_is_changed_the_run_is_valid_or_refused(name, kind, copy):
    source = random.Random(f"{name} {kind}")
    file = copy / name
    before = file.read_bytes()
    for _ in range(150):
        if kind == "bytes":
            file.write_bytes(garbled(before, source))
        elif name.endswith(".npz"):
            made = [change for change, _ in GEOMETRY.values()]
            file.write_bytes(before)
            found = arrays(file)
            for change in source.sample(made, 2):
                try:
                    found = change(found)
                except (KeyError, TypeError, ValueError, AttributeError, IndexError):
                    continue  # the first took away what the second changes
            np.savez(file, **found)
        elif name == "records.jsonl":
            lines = [json.loads(line) for line in before.splitlines()]
            lines[1] = changed_somewhere(lines[1], source, VALUES)
            file.write_text("\n".join(json.dumps(line) for line in lines))
        else:
            file.write_text(json.dumps(changed_somewhere(yaml.safe_load(before), source, VALUES)))
        try:
            run = read_run(copy)
        except InputError as error:
            if "\n" in str(error):
                pytest.fail(f"expected one line, got {error}")
        else:
            assert all(record == record for record in run.records)
