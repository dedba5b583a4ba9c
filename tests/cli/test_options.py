"""The command line answers the words of other tools with the option that exists."""

import re

import pytest

from neuralcollapse.cli import main


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train --lr 0.1", "did you mean '--learning-rate'?"),
        ("train --wd 0.1", "did you mean '--weight-decay'?"),
        ("train --cosine", "did you mean '--schedule'?"),
        ("train --run-name x", "did you mean '--out'?"),
        ("train --loss ce", "no loss 'ce' (did you mean 'cross_entropy'?)"),
        ("train --optimizer nesterov", "did you mean 'sgd'?"),
        ("landscape --loss xent", "no loss 'xent' (did you mean 'cross_entropy'?)"),
        ("train -bs 3", "did you mean '--batch-size'?"),
        ("train --num_epochs=3", "did you mean '--epochs'?"),
        ("train --device cuda", "did you mean '--accelerator'?"),
        ("train --model resnet18", "did you mean '--network'?"),
        ("train --out-dir x", "did you mean '--out'?"),
        ("train --num-workers 2", "no worker has to load them"),
        ("train digits", "data are named by --data digits"),
        ("train run.yaml", "--config run.yaml"),
        ("ood --model x", "did you mean '--network'?"),
        ("measure --epochs 3", "--epochs is an option of 'train'"),
        ("measure --lr 3", "'train' has --learning-rate"),
        ("landscape --num-classes 3", "did you mean '--classes'?"),
        ("landscape --optimizer adam", "did you mean '--method'?"),
        ("reproduce --epochs 3", "the YAML of --show"),
        ("report --output x", "did you mean '--out'?"),
        ("trian", "did you mean 'train'?"),
    ],
)
def test_an_option_of_another_tool_is_answered_by_one_of_the_command(line, hint, capsys):
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1
    for flag in re.findall(r"(?<=mean ')--[a-z-]+", error):
        with pytest.raises(SystemExit):
            main([line.split()[0], "--help"])
        assert f"{flag} " in capsys.readouterr().out


def test_a_file_offers_the_option_that_is_meant(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("lr: 0.1\n")
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "no option 'lr' (did you mean 'learning_rate'?)" in capsys.readouterr().err
