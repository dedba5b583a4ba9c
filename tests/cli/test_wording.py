import pytest

from neuralcollapse.cli.wording import in_flags

OPTIONS = ["batch_size", "frame", "out", "force", "trust_code", "epochs", "class_names", "help"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("expected batch_size to be at least 2, got 1", "expected --batch-size to be at least 2, got 1"),
        ("learned rows are for frame=learned", "learned rows are for --frame learned"),
        ("after 3 epochs of one frame", "after 3 epochs of one frame"),
        ("choose another (--out, out=)", "choose another (--out)"),
        ("overwrite the run in it (--force, force=True)", "overwrite the run in it (--force)"),
        ("allow that with --trust-code (trust_code=True)", "allow that with --trust-code"),
        ("expected the array class_names as K texts", "expected the array class_names as K texts"),
        ("see --image-size", "see image_size"),
        ("run.yaml: expected batch_size to be 2", "run.yaml: expected batch_size to be 2"),
        ("go on with 'neuralcollapse train --resume my_run'", "go on with 'neuralcollapse train --resume my_run'"),
        ("no folder /tmp/batch_size", "no folder /tmp/batch_size"),
        ("no option 'batch_size'", "no option 'batch_size'"),
    ],
)
def test_options_are_named_as_the_command_has_them(message, said):
    assert in_flags(message, OPTIONS) == said


def test_an_argument_of_the_library_is_the_option_that_sets_it():
    words = {"num_classes": "classes"}
    assert in_flags("expected num_classes of at least 2", ["classes"], words) == "expected --classes of at least 2"
