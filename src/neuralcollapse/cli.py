"""The command line: parse, call, print. Heavy modules load when a command needs them."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_origin

from neuralcollapse._errors import InputError, NeuralCollapseWarning
from neuralcollapse.records import MEASURES, RunFolder
from neuralcollapse.training.config import TrainConfig, check_names, types

_DECAYS = ("weight_decay", "feature_decay", "bias_decay")
_EXAMPLES = """\
examples:
  neuralcollapse train                                      digits, an MLP, half a minute, a page
  neuralcollapse train --classifier etf --feature_dim 10    the same with a fixed ETF classifier
  neuralcollapse measure features.npz                       arrays features, labels [, weight, bias]
  neuralcollapse measure runs/digits-mlp-learned            the checkpoints of a run
  neuralcollapse report runs/digits-mlp-learned             make the page again
  neuralcollapse landscape --samples 30,10,5,2              solve and draw an unconstrained feature model
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for wrong input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _show_warning
    try:
        parser = _parser()
        if arguments[:1] == ["train"]:  # its options come from TrainConfig, by jsonargparse
            return _train(arguments[1:])
        options = parser.parse_args([_spelled(argument, "_", "-") for argument in arguments])
        command: Callable[[argparse.Namespace], int] | None = getattr(options, "run", None)
        if command is None:
            parser.print_help()
            return 0
        return command(options)
    except InputError as error:
        print(f"neuralcollapse: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("neuralcollapse: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see '{self.prog} --help'")


def _parser() -> _Parser:
    parser = _Parser(
        prog="neuralcollapse",
        description="Measure, prove and use neural collapse.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from importlib.metadata import version

    parser.add_argument("--version", action="version", version=f"neuralcollapse {version('neuralcollapse')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    commands.add_parser("train", help="train a network, measure collapse as it goes, write a run folder and its page")

    measure = commands.add_parser(
        "measure",
        help="measure a file of features, or the checkpoints of a run",
        description="Measure collapse in a file of features (.npz or .safetensors with arrays features (N, d) and "
        "labels (N,), and if there is one the classifier's weight (K, d) and bias (K,)), or in the checkpoints of a "
        "run folder.",
        epilog="example:\n  neuralcollapse measure features.npz --json\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    measure.add_argument("path", type=Path, help="a .npz or .safetensors file, or a run folder")
    measure.add_argument("--num-classes", type=int, metavar="K", help="classes, where the file has no weight to tell")
    measure.add_argument("--ignore-index", type=int, metavar="LABEL", help="leave out samples with this label")
    measure.add_argument("--no-pairwise", action="store_true", help="skip the measures whose cost grows with K^2")
    measure.add_argument(
        "--certify-head",
        action="store_true",
        help="compare the last layer with the exact optimum of the unconstrained feature model",
    )
    measure.add_argument(
        "--weight-decay", type=float, metavar="L", help="of the training, for --certify-head on a file"
    )
    measure.add_argument(
        "--feature-decay", type=float, metavar="L", help="of the features (from the balance of W and H)"
    )
    measure.add_argument("--bias-decay", type=float, metavar="L", help="of the bias (the weight decay)")
    measure.add_argument("--json", action="store_true", help="print JSON")
    measure.set_defaults(run=_measure)

    landscape = commands.add_parser(
        "landscape",
        help="solve, certify and draw an unconstrained feature model",
        description="Solve an unconstrained feature model exactly, list its critical points, certify where random "
        "starts end, and draw it all on a page.",
        epilog="examples:\n  neuralcollapse landscape\n"
        "  neuralcollapse landscape --samples 30,10,5,2 --dim 5 --bias-decay 0.01\n"
        "  neuralcollapse landscape --classes 10 --dim 12 --loss mse --no-bias --starts 1000\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    landscape.add_argument("--classes", type=int, metavar="K", help="classes (4, or as many as --samples lists)")
    landscape.add_argument("--dim", type=int, metavar="d", help="feature dimension (K + 2)")
    landscape.add_argument(
        "--samples", default="5", metavar="N", help="samples a class: one number, or a list n1,n2,..."
    )
    landscape.add_argument("--weight-decay", type=float, default=0.005, metavar="L", help="of W (0.005)")
    landscape.add_argument("--feature-decay", type=float, default=0.005, metavar="L", help="of H (0.005)")
    landscape.add_argument("--bias-decay", type=float, default=0.0, metavar="L", help="of b (0)")
    landscape.add_argument("--no-bias", action="store_true", help="leave the bias out")
    landscape.add_argument(
        "--loss", default="cross_entropy", help="cross_entropy, label_smoothing[:A], focal[:GAMMA] or mse"
    )
    landscape.add_argument("--starts", type=int, default=100, metavar="N", help="random starts (100)")
    landscape.add_argument(
        "--method", default="lbfgs", help="of the recorded trajectories: lbfgs, newton, gd, sgd, adam"
    )
    landscape.add_argument("--seed", type=int, default=0, help="of the starts (0)")
    landscape.add_argument("--out", type=Path, default=Path("landscape.html"), metavar="FILE", help="the page")
    landscape.add_argument("--force", action="store_true", help="overwrite the page")
    landscape.add_argument("--json", action="store_true", help="print JSON")
    landscape.set_defaults(run=_landscape)

    report = commands.add_parser(
        "report",
        help="write the page of a run",
        description="Write one self-contained HTML page with the figures of a run; it works offline.",
        epilog="example:\n  neuralcollapse report runs/digits-mlp-learned --out collapse.html\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_argument("path", type=Path, metavar="RUN", help="a run folder")
    report.add_argument("--out", type=Path, metavar="FILE", help="where to write it (RUN/report.html)")
    report.add_argument("--force", action="store_true", help="overwrite that file")
    report.add_argument("--json", action="store_true", help="print JSON")
    report.set_defaults(run=_report)
    return parser


def _train(arguments: list[str]) -> int:
    try:
        import jsonargparse
        import yaml  # noqa: F401  jsonargparse reads config files with it

        from neuralcollapse.report.page import write_page
        from neuralcollapse.training.resume import Stopped
        from neuralcollapse.training.run import is_primary, resume, train
    except ImportError as error:
        raise _needs_train(error) from None
    parser = jsonargparse.ArgumentParser(
        prog="neuralcollapse train",
        description="Train a network, measure collapse as it goes, write a run folder and its page.",
        epilog="examples: neuralcollapse train --epochs 100 --classifier etf --feature_dim 10 --out runs/etf; "
        "neuralcollapse train --data fashion-mnist --network resnet18 --stem small --optimizer adam; "
        "neuralcollapse train --resume runs/etf",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_argument("--out", type=str | None, help="the run folder (runs/DATA-NETWORK-CLASSIFIER)")
    parser.add_argument("--force", action="store_true", help="overwrite an earlier run in that folder")
    parser.add_argument("--resume", type=str | None, metavar="RUN", help="go on with a run that was stopped")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_class_arguments(TrainConfig)
    arguments = [_listed(_spelled(argument, "-", "_")) for argument in _joined(arguments)]
    parsed = _parse(parser, arguments)
    options = {name: parsed[name] for name in types()}
    if parsed.resume:
        if parsed.out or parsed.force:
            raise InputError("--resume goes on in the run's own folder: leave out --out and --force")
        out = Path(parsed.resume)
        given = parser.parse_args(arguments, defaults=False)
        changes = {name: given[name] for name in types() if name in given}
    else:
        config = TrainConfig(**options)
        out = Path(parsed.out or f"runs/{_file_name(config.data)}-{_file_name(config.network)}-{config.classifier}")

    try:
        run = resume(out, changes) if parsed.resume else train(config, out, force=parsed.force)
    except Stopped as stopped:
        if is_primary():
            print(
                f"neuralcollapse: {stopped}; to go on: neuralcollapse train --resume {out}",
                file=sys.stderr,
            )
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print(
            f"neuralcollapse: interrupted; the records so far are in {out}: neuralcollapse train --resume {out}",
            file=sys.stderr,
        )
        return 130
    if not is_primary():
        return 0
    page = write_page(run)
    last = run.records()[-1]
    values: dict[str, Any] = {"epoch": last.epoch, "train": last.train, "test": last.test, "measures": last.measures}
    if last.head:
        values["head"] = last.head
    if last.layers:
        values["layers"] = last.layers
    if parsed.json:
        _print_json({"run": str(run.path), "page": str(page), **values})
        return 0
    how = "on the training set" if last.source == "eval" else "from the training steps of the last epoch"
    print(f"collapse after {last.epoch} epochs, {how} (all but NC bias go to 0)\n")
    _print_table(last.measures)
    _print_head({"head": last.head} if last.head else {})
    _print_layers(last.layers)
    test = f"   test accuracy {last.test['accuracy']:.4f}" if last.test else ""
    print(f"\ntrain accuracy {last.train['accuracy']:.4f}{test}")
    print(f"run   {run.path}\npage  {page}")
    if options["classifier"] == "learned" and not parsed.resume:
        print(
            "next  open the page; or fix the classifier: add --classifier etf --feature_dim K, K the number of classes"
        )
    else:
        print("next  open the page; or compare with another classifier, loss or optimiser: neuralcollapse train --help")
    return 0


def _file_name(text: str) -> str:
    """What can stand in a file's name of a data set or network: the last part of a path or dotted name."""
    return re.sub(r"[^\w.-]+", "-", re.split(r"[/\\]", text.rstrip("/\\"))[-1]) or "run"


def _joined(arguments: list[str]) -> list[str]:
    """Options and values that stand apart, joined by "=", where the option takes a list: --layers a,b."""
    joined: list[str] = []
    lists = {name for name, kind in types().items() if get_origin(kind) is tuple}
    waiting = iter(arguments)
    for argument in waiting:
        if argument.startswith("--") and argument[2:].replace("-", "_") in lists:
            value = next(waiting, None)
            argument = argument if value is None else f"{argument}={value}"
        joined.append(argument)
    return joined


def _listed(argument: str) -> str:
    """A list written a,b as jsonargparse reads one: [a,b]."""
    name, equals, value = argument.partition("=")
    kind = types().get(name.removeprefix("--"))
    if not equals or get_origin(kind) is not tuple or value.startswith(("[", "(")):
        return argument
    return f"{name}=[{value}]"


def _parse(parser: Any, arguments: list[str]) -> Any:
    """Parse with jsonargparse; its errors in one line, unknown options with the nearest known."""
    known = {name.lstrip("-") for action in parser._actions for name in action.option_strings}
    for argument in arguments:
        name = argument[2:].split("=")[0]
        if argument.startswith("--") and name not in known:
            check_names({name: None}, "train")
    try:
        return parser.parse_args(arguments)
    except Exception as error:  # jsonargparse raises argparse's, its own and its YAML reader's
        unknown = re.search(r"Option '(\w+)' is not accepted", str(error))
        if unknown:
            check_names({unknown[1]: None}, "train --config")
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(f"train: {' '.join(lines)[:300]}; see 'neuralcollapse train --help'") from None


def _spelled(argument: str, old: str, new: str) -> str:
    """A flag's name with `new` for `old`, so that --feature-dim and --feature_dim both work everywhere."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace(old, new) + equals + value


def _measure(options: argparse.Namespace) -> int:
    if options.path.is_dir():
        run = RunFolder.open(options.path)
        given = [options.num_classes, options.ignore_index, *(getattr(options, name) for name in _DECAYS)]
        if options.no_pairwise or any(value is not None for value in given):
            raise InputError(
                "only --certify-head and --json are for runs, the other options are for files: leave them out"
            )
        try:
            from neuralcollapse.training.run import remeasure
        except ImportError as error:
            raise _needs_train(error) from None
        results = remeasure(run, certify_head=options.certify_head)
        if options.json:
            _print_json([{"epoch": epoch, **values} for epoch, values in results.items()])
            return 0
        for epoch, values in results.items():
            print(f"epoch {epoch}, training set, {values['num_samples']} samples, accuracy {values['accuracy']:.4f}\n")
            _print_table(values)
            _print_head(values)
            _print_layers(values.get("layers", {}))
            print()
        print(f"next  neuralcollapse report {options.path}")
        return 0

    if not options.certify_head and any(getattr(options, name) is not None for name in _DECAYS):
        raise InputError("the decays are for --certify-head: add it, or leave them out")
    arrays = read_features(options.path)
    from neuralcollapse.capture import measure_features

    values = measure_features(
        arrays["features"],
        arrays["labels"],
        arrays.get("weight"),
        arrays.get("bias"),
        options.num_classes,
        ignore_index=options.ignore_index,
        pairwise=not options.no_pairwise,
    )
    if options.certify_head:
        values["head"] = _certify_head(arrays, options)
    if options.json:
        _print_json(values)
        return 0
    accuracy = f", accuracy {values['accuracy']:.4f}" if "accuracy" in values else ""
    print(f"{options.path}: {values['num_samples']} samples{accuracy} (all but NC bias go to 0 under collapse)\n")
    _print_table(values)
    _print_head(values)
    unused = sorted(set(arrays) - {"features", "labels", "weight", "bias"})
    if unused:
        print(f"\nnot used: the arrays {', '.join(unused)}")
    if "nc2" not in values:
        print("\nnext  add the classifier's weight (K, d) and bias (K,) to the file to measure NC2, NC3 and NC4")
    return 0


def _certify_head(arrays: Mapping[str, Any], options: argparse.Namespace) -> dict[str, float]:
    import torch

    from neuralcollapse.ufm.head import certify_head

    if options.weight_decay is None or "weight" not in arrays:
        raise InputError("--certify-head needs the array weight in the file, and --weight-decay of the training")
    features, labels, weight = (torch.as_tensor(arrays[name]) for name in ("features", "labels", "weight"))
    bias = torch.as_tensor(arrays["bias"]) if "bias" in arrays else None
    if options.ignore_index is not None:
        kept = labels != options.ignore_index
        features, labels = features[kept], labels[kept]
    decays = (options.weight_decay, options.feature_decay)
    return certify_head(features, labels, weight, bias, *decays, bias_decay=options.bias_decay).record()


def _print_layers(layers: Mapping[str, Mapping[str, float]]) -> None:
    for number, (name, values) in enumerate(layers.items()):
        if number == 0:
            print(f"\n  {'layer':<27} {'NC1':>10} {'NC1, CDNV':>10}")
        print(f"  {name:<27} {values['nc1']:>10.3g} {values.get('nc1_cdnv', math.nan):>10.3g}")


def _print_head(values: Mapping[str, Any]) -> None:
    if "head" in values:
        head = values["head"]
        print(
            f"\n  {'head':<27} {head['ratio']:>10.4g}   times the exact minimum: objective {head['objective']:.6g}, "
            f"minimum {head['minimum']:.6g}, bound {head['lower_bound']:.6g}"
        )


def read_features(path: Path) -> dict[str, Any]:
    """The arrays of a .npz or .safetensors file, as tensors; nothing in it is ever unpickled.

    Raises:
        InputError: no such file, another kind of file, pickled data, or features or labels missing.
    """
    if not path.is_file():
        raise InputError(f"no file or run folder {path}")
    how = "save plain arrays with numpy.savez(path, features=..., labels=...) or safetensors.torch.save_file"
    if path.suffix not in (".npz", ".safetensors"):
        raise InputError(
            f"expected a .npz or .safetensors file, got {path.name} (pickled files are never loaded): {how}"
        )
    try:
        if path.suffix == ".npz":
            import numpy as np

            if not zipfile.is_zipfile(path):
                raise InputError(
                    f"{path} is no .npz file, or cut off (pickled files are never loaded): copy it again, or {how}"
                )
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        else:
            from safetensors.torch import load_file

            arrays = load_file(path)
    except InputError:
        raise
    except ValueError as error:
        if "pickle" in str(error):
            raise InputError(f"{path} holds pickled data, which is never loaded: {how}") from None
        raise InputError(f"cannot read {path}: {error}; {how}") from None
    except Exception as error:  # zip and safetensors raise kinds of their own
        raise InputError(f"cannot read {path} as {path.suffix}: {error}; {how}") from None
    missing = [name for name in ("features", "labels") if name not in arrays]
    if missing:
        found = ", ".join(sorted(arrays)) or "none"
        raise InputError(f"{path} has no array {' or '.join(map(repr, missing))} (it has: {found}): {how}")
    return dict(arrays)


def _landscape(options: argparse.Namespace) -> int:
    if options.out.exists() and not options.force:
        raise InputError(f"{options.out} exists: choose another with --out, or overwrite with --force")
    if not options.out.parent.is_dir():
        raise InputError(
            f"no folder {options.out.parent} to write {options.out.name} into: make it, or choose another --out"
        )
    try:
        samples = [int(part) for part in options.samples.split(",")]
    except ValueError:
        raise InputError(f"expected --samples as a number or a list n1,n2,..., got {options.samples!r}") from None
    classes = options.classes if options.classes is not None else len(samples) if len(samples) > 1 else 4
    if options.no_bias and options.bias_decay:
        raise InputError("expected --bias-decay without --no-bias, got both: a model without bias has nothing to decay")
    if options.starts < 1:
        raise InputError(f"expected --starts of at least 1, got {options.starts}")
    try:
        from neuralcollapse.report.landscape import landscape_page, summary
        from neuralcollapse.report.page import save_page
    except ImportError as error:
        raise _needs_train(error) from None
    from neuralcollapse.ufm.model import Model
    from neuralcollapse.ufm.solvers import check_method
    from neuralcollapse.ufm.survey import survey

    check_method(options.method)

    model = Model(
        classes,
        options.dim if options.dim is not None else classes + 2,
        samples[0] if len(samples) == 1 else samples,
        options.weight_decay,
        options.feature_decay,
        options.bias_decay,
        not options.no_bias,
        options.loss,
    )
    found = survey(
        model,
        starts=options.starts,
        method=options.method,
        seed=options.seed,
        tell=lambda text: print(f"... {text}", file=sys.stderr, flush=True),
    )
    page = save_page(landscape_page(found), options.out)
    ends: dict[tuple[str, str], list[float]] = {}
    for value, verdict, gap in zip(found.starts.objectives, found.starts.verdicts, found.starts.gaps, strict=True):
        ends.setdefault((f"{float(value):.8f}", verdict), []).append(float(gap))
    if options.json:
        _print_json(
            {
                "minimum": found.minimum,
                "atlas": [
                    {
                        "groups": [list(group) for group in entry.partition],
                        "objective": entry.objective,
                        "verdict": entry.certificate.verdict,
                        "index": entry.index,
                        "rank": entry.rank,
                        "least_eigenvalue": entry.least_eigenvalue,
                        "gap": entry.certificate.gap,
                    }
                    for entry in found.atlas
                ],
                "ends": [
                    {"objective": float(value), "verdict": verdict, "starts": len(gaps), "largest_gap": max(gaps)}
                    for (value, verdict), gaps in sorted(ends.items())
                ],
                "page": str(page),
            }
        )
        return 0
    print(summary(found))
    if found.minimum is not None:
        print(f"\nglobal minimum  {found.minimum:.10f}")
    if found.atlas:
        print(f"\n  {'groups':<22} {'objective':>12} {'index':>6} {'rank':>5} {'least eigenvalue':>17}  verdict")
        for entry in found.atlas:
            facts = f"{entry.objective:>12.8f} {entry.index:>6} {entry.rank:>5} {entry.least_eigenvalue:>17.3g}"
            print(f"  {entry.name:<22} {facts}  {entry.certificate.verdict}")
    print(f"\n  {'end of starts':>13} {'starts':>7} {'largest certified gap':>22}  verdict")
    for (value, verdict), gaps in sorted(ends.items()):
        print(f"  {value:>13} {len(gaps):>7} {max(gaps):>22.1e}  {verdict}")
    print(f"\npage  {page}\nnext  open it in a browser, or set unequal classes: --samples 30,10,5,2")
    return 0


def _report(options: argparse.Namespace) -> int:
    run = RunFolder.open(options.path)
    if options.out is not None and options.out.exists() and not options.force:
        raise InputError(f"{options.out} exists: choose another with --out, or overwrite with --force")
    try:
        from neuralcollapse.report.page import write_page
    except ImportError as error:
        raise _needs_train(error) from None
    page = write_page(run, options.out)
    if options.json:
        _print_json({"page": str(page)})
    else:
        print(f"page  {page}\nnext  open it in a browser")
    return 0


def _needs_train(error: ImportError) -> InputError:
    return InputError(f"this command needs more packages ({error}): pip install 'neuralcollapse[train]'")


def _print_table(values: Mapping[str, float]) -> None:
    for name, (_, meaning) in MEASURES.items():
        if name in values:
            print(f"  {name:<27} {values[name]:>10.3g}   {meaning}")


def _print_json(value: Any) -> None:
    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {name: plain(part) for name, part in item.items()}
        if isinstance(item, list):
            return [plain(part) for part in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    print(json.dumps(plain(value), indent=2))


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, NeuralCollapseWarning):
        print(f"neuralcollapse: warning: {message}", file=sys.stderr)
