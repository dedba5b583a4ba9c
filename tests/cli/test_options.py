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
        ("reproduce --lr 3", "the experiment sets --learning-rate of its runs"),
        ("train --warmup-epochs 3", "learning rates have no warm-up"),
        ("measure --gpus 1", "did you mean '--device'?"),
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


@pytest.mark.parametrize("command", ["train", "measure", "ood", "landscape", "reproduce", "report"])
@pytest.mark.parametrize("flag", ["verbose", "temperature", "dropout", "deepspeed", "version", "min-lr", "layer-decay"])
def test_a_word_that_is_like_no_option_is_answered_by_none(command, flag, capsys):
    assert main([command, f"--{flag}", "1"]) == 2
    assert capsys.readouterr().err == (
        f"neuralcollapse: error: {command}: no option '--{flag}'; see 'neuralcollapse {command} --help'\n"
    )


@pytest.mark.parametrize("flag", ["save-strategy", "logging-steps", "checkpoint-hist", "interpolation", "theme", "yes"])
def test_a_word_that_is_like_no_option_of_training_is_answered_by_none(flag, capsys):
    assert main(["train", f"--{flag}", "1"]) == 2
    assert f"no option '--{flag}'; see" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--id", "--bias", "--mean", "--num-seeds", "--pretrained"])
def test_words_of_training_alone_are_looked_for_in_other_commands(flag, capsys):
    """`train --id 3` names a run elsewhere, and has nothing to do with `ood --inside`."""
    assert main(["train", flag, "3"]) == 2
    assert f"no option '{flag}';" in capsys.readouterr().err


def test_a_file_offers_the_option_that_is_meant(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("lr: 0.1\n")
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "no option 'lr' (did you mean 'learning_rate'?)" in capsys.readouterr().err
