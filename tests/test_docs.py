"""What the docs say runs: their Python blocks, their commands, and the links between them.

Python blocks of a page run in order, in one namespace, in an empty folder. Where a page says "your model", `prepare`
gives it a small one. What is printed must be what the page shows below a block, numbers nearly. Then the commands of
the page's ```sh blocks run. Commands in indented blocks are read by the real command line, up to where work begins.
"""

import re
import shlex
from pathlib import Path

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse import cli
from neuralcollapse.training.config import TrainConfig

ROOT = Path(__file__).parent.parent
GUIDES = sorted(f"docs/guides/{file.name}" for file in (ROOT / "docs/guides").glob("*.md"))
PAGES = ["README.md", "docs/index.md", "docs/tutorial.md", "docs/theory.md", "docs/ood.md", "docs/gallery.md", *GUIDES]
TEXTS = [*PAGES, "docs/training.md", "docs/reproduce.md", "docs/measures.md", "docs/results.md"]
FEWEST_BLOCKS = {
    "docs/tutorial.md": 8,
    "README.md": 5,
    "docs/theory.md": 5,
    "docs/index.md": 1,
    "docs/guides/sharded-models.md": 0,
}


def blocks(page: str) -> list[tuple[str, str]]:
    """(code, what the page shows as its output) of each Python block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```\n(?:\n((?:^    [^\n]*\n)+))?", text, re.MULTILINE | re.DOTALL)
    return found


def commands(page: str) -> tuple[list[str], list[str]]:
    """The commands of ```sh blocks, which run, and those of indented blocks and in the text, which are read."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    to_run = re.findall(r"^neuralcollapse .*$", fenced, re.MULTILINE)
    to_read = re.findall(r"^    (?:torchrun .* -m )?(neuralcollapse .*)$", text, re.MULTILINE)
    to_read += [" ".join(command.split()) for command in re.findall(r"`(neuralcollapse [^`]+)`", text)]
    run, read = ([re.split(r" {2,}| +#| +> ", line)[0] for line in lines] for lines in (to_run, to_read))
    return run, read


def prepare(page: str) -> dict:
    """The names that a page takes for granted."""
    torch.manual_seed(0)
    if page in ("README.md", "docs/tutorial.md", "docs/theory.md", "docs/guides/measure.md"):  # they run as they stand
        return {}
    if page == "docs/guides/many-classes.md":
        return language_model()
    namespace: dict = {}
    exec(blocks("docs/guides/measure.md")[0][0], namespace)  # "A model to try", to which the others point
    if page == "docs/guides/checkpoints.md":
        save_checkpoints(namespace["model"])
    return namespace


def language_model() -> dict:
    """A GPT-2 of one layer, and tokens at random."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=160, n_positions=64, n_embd=160, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    tokens = torch.randint(160, (120, 64))
    return {
        "model": GPT2LMHeadModel(config),
        "loader": [{"input_ids": batch, "labels": batch} for batch in tokens.split(40)],
    }


def save_checkpoints(model: torch.nn.Module) -> None:
    from safetensors.torch import save_file

    Path("ckpts").mkdir()
    for epoch in (1, 2, 10):
        with torch.no_grad():
            model.fc.weight.mul_(1.1)
        save_file(model.state_dict(), f"ckpts/epoch-{epoch}.safetensors")


def assert_shown(printed: str, shown: str) -> None:
    """Both say the same, word by word; numbers may differ a little between machines."""
    got, wanted = printed.split(), shown.split()
    assert len(got) == len(wanted), printed
    for word, other in zip(got, wanted, strict=True):
        if word != other:
            assert float(word) == pytest.approx(float(other), rel=0.3, abs=0.02), printed


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if page == "docs/guides/many-classes.md":  # which has a program for torchrun
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
            monkeypatch.setenv(name, value)
    namespace = prepare(page)
    found = blocks(page)
    assert len(found) >= FEWEST_BLOCKS.get(page, 2)
    for code, shown in found:
        capsys.readouterr()
        exec(compile(code, page, "exec"), namespace)
        if shown:
            assert_shown(capsys.readouterr().out, shown)
    for line in commands(page)[0]:
        fewer = ["--epochs", "1"] if line.startswith("neuralcollapse train") else []
        arguments = [*shlex.split(line)[1:], *fewer]
        assert cli.main(arguments) == 0, line


def test_the_docs_have_many_blocks():
    assert sum(len(blocks(page)) for page in PAGES) >= 45


def test_outputs_are_compared():
    assert sum(bool(shown) for page in PAGES for _, shown in blocks(page)) >= 8
    with pytest.raises(AssertionError):
        assert_shown("NC1 0.5", "NC1 0.1")


READ = sorted({line for page in TEXTS for part in commands(page) for line in part if "..." not in line})


@pytest.mark.parametrize("line", READ)
def test_a_command_of_the_docs_is_one(line, monkeypatch, tmp_path):
    """Each is read by the command line, and stops where its work would begin."""
    arguments = shlex.split(line)[1:]
    (tmp_path / "run.yaml").write_text("epochs: 3\n")
    monkeypatch.chdir(tmp_path)
    if "--help" in arguments:
        with pytest.raises(SystemExit):
            cli.main(arguments)
        return
    if len(arguments) == 1:  # a list of the commands
        assert re.search(rf"^ +{arguments[0]}\s", cli._parser().format_help(), re.MULTILINE)
        return
    if arguments[0] != "train" or "--resume" in arguments:
        assert callable(cli.parse(arguments).run)
        return
    seen = []

    def train(config, out, **_):
        seen.append(config)
        raise nc.InputError("far enough")

    monkeypatch.setattr("neuralcollapse.training.run.train", train)
    if "--print-config" in arguments:
        with pytest.raises(SystemExit):
            cli.main(arguments)
    else:
        assert cli.main(arguments) == 2
        assert isinstance(seen[0], TrainConfig)


def test_the_docs_give_many_commands():
    assert len(READ) >= 25


LINKING = ["CONTRIBUTING.md", "CHANGELOG.md", *TEXTS, "docs/architecture.md", "benchmarks/README.md"]


@pytest.mark.parametrize("page", LINKING)
def test_files_that_the_docs_name_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_pictures_of_the_gallery_are_small_and_all_shown():
    pictures = [ROOT / "docs/page.webp", *(ROOT / "docs/assets/gallery").iterdir()]
    text = (ROOT / "docs/gallery.md").read_text(encoding="utf-8")
    assert [file.name for file in pictures if file.name not in text] == []
    assert sum(file.stat().st_size for file in pictures) < 600_000


def test_every_page_is_on_the_site():
    """In the navigation, where mkdocs would only warn."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")}
    assert not [page for page in sorted(pages) if f" {page}\n" not in navigation]


def test_the_picture_of_the_rooms_shows_the_imports_as_they_are(monkeypatch):
    pytest.importorskip("grimp")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import draw_rooms

    assert draw_rooms.TARGET.read_text() == draw_rooms.svg(), "draw it again: python tools/draw_rooms.py"
