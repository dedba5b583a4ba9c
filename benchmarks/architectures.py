"""Measures real architectures with `nc.measure` and compares with brute force: `python benchmarks/architectures.py`.

Every model has random weights and tiny random data; nothing is downloaded. What the head received is caught by hooks
of this script, how that becomes the features is written down by hand for each family (`zoo*.py`), and
before anything is compared the script checks for itself that the features and weights so described do make the logits
that the model returns. Verdicts:

    agrees    every number is that of brute force
    refused   an InputError, with its words
    WRONG     numbers that belong to no reading of the model, or to one of several heads without a word about the others
    crashed   any other exception
    unread    the script itself failed to read the model
    missing   the model's library is not installed

Options: --only PATTERN runs the models in whose name that regular expression is found (such as '^timm [a-d]'), --json
FILE writes the rows too.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import neuralcollapse as nc
from brute_force import geometry, predictions, with_head
from zoo import IGNORED, Calls, Case
from zoo_heads import head_cases
from zoo_images import timm_cases, torchvision_cases
from zoo_layers import layer_cases
from zoo_texts import transformers_cases


@dataclass
class Row:
    """What became of one case."""

    name: str
    verdict: str
    words: str
    seconds: float


# One pass with the script's own hooks.


def returned_logits(output: Any, choose: Callable[[Any], Tensor] | None) -> Tensor:
    if choose is not None:
        return choose(output)
    if isinstance(output, Mapping):
        return output["logits"]
    return output[0] if isinstance(output, list | tuple) else output


def inputs_and_labels(batch: Any) -> tuple[Any, Tensor]:
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    return batch[0], batch[1]


def own_pass(case: Case, model: nn.Module) -> tuple[list[Calls], list[Any], Tensor, Tensor]:
    """Calls of the watched layers, raw outputs of the inner layer, returned logits and labels, flat."""
    calls, inner, logits, labels = [], [], [], []
    named = dict(model.named_modules())
    choose = getattr(model, "choose_logits", None)
    for batch in case.batches():
        seen: Calls = {}
        raw: list[Any] = []
        kept: dict[str, Tensor] = {}
        hooks = []
        for name in case.watch or (case.head,):

            def before(_: nn.Module, args: Any, kwargs: Any, name: str = name, kept: dict[str, Tensor] = kept) -> None:
                kept[name] = (args[0] if args else next(iter(kwargs.values()))).detach().clone()

            def after(
                _: nn.Module, args: Any, output: Tensor, name: str = name, kept: Any = kept, seen: Calls = seen
            ) -> None:
                seen[name] = kept[name], output.detach().clone()

            hooks += [
                named[name].register_forward_pre_hook(before, with_kwargs=True),
                named[name].register_forward_hook(after),
            ]
        if case.layer:
            hooks.append(named[case.layer].register_forward_hook(lambda _, __, out, raw=raw: raw.append(cloned(out))))
        inputs, target = inputs_and_labels(batch)
        with torch.no_grad():
            out = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
        for hook in hooks:
            hook.remove()
        values = returned_logits(out, choose).detach()
        if case.options.get("next_token"):
            target = torch.cat([target[:, 1:], torch.full_like(target[:, :1], IGNORED)], 1)
        logits.append(values.reshape(-1, values.shape[-1]))
        labels.append(target.flatten().long())
        calls.append(seen)
        inner += raw
    return calls, inner, torch.cat(logits), torch.cat(labels)


def cloned(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach().clone()
    if isinstance(output, Mapping):
        return {name: cloned(value) for name, value in output.items()}
    return [cloned(value) for value in output] if isinstance(output, list | tuple) else output


def expected(case: Case, model: nn.Module) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Brute-force numbers of each reading, and of the inner layer."""
    calls, inner, logits, labels = own_pass(case, model)
    keep = labels != IGNORED
    target = labels[keep].numpy()
    shown = logits[keep].double().numpy()
    answers = []
    for reading in case.readings:
        raw = torch.cat([reading.rows(seen, batch) for seen, batch in zip(calls, case.batches(), strict=True)])[keep]
        features = raw.double().numpy()
        weight, bias = reading.weight(model)
        rows, shift = weight.detach().double().numpy(), None if bias is None else bias.detach().double().numpy()
        if reading.quiet:
            made = features @ rows.T + (0 if shift is None else shift)
            room = 64 * torch.finfo(logits.dtype).eps * max(1.0, np.abs(shown).max(), np.abs(features).max())
            if reading.shared:
                made, against = made - made.mean(1, keepdims=True), shown - shown.mean(1, keepdims=True)
            else:
                against = shown
            off = np.abs(made - against).max()
            assert off <= room, f"the script's own reading {reading.name!r} of {case.name} is off by {off:.2g}"
        eps = torch.finfo(raw.dtype).eps
        answer = geometry(features, target, eps) | with_head(features, target, rows, shift)
        answer |= predictions(features, target, shown)
        if reading.shared:
            del answer["nc_bias"]  # a term that all classes share changes it
        if not reading.quiet:  # the head's own predictions and the model's are both fair
            answer["its own nc4"] = predictions(features, target, features @ rows.T + (0 if shift is None else shift))[
                "nc4"
            ]
        answers.append(answer)
    layer = {}
    if case.layer and case.layer_rows is not None:
        parts = [case.layer_rows(raw, batch) for raw, batch in zip(inner, case.batches(), strict=True)]
        flat = torch.cat(parts)
        flat = flat[keep] if len(flat) == len(keep) else flat
        layer = geometry(flat.double().numpy(), target, torch.finfo(flat.dtype).eps)
    return answers, layer


# Verdicts.


def differences(
    answer: dict[str, float], result: Mapping[str, Any], tolerance: float
) -> dict[str, tuple[float, float]]:
    """Key -> (right, measured) where they are apart."""
    if "its own nc4" in answer:
        own = answer["its own nc4"]
        answer = {name: value for name, value in answer.items() if name != "its own nc4"}
        answer["nc4"] = min(own, answer["nc4"], key=lambda value: abs(value - result["nc4"]))
    scale = {name: max(abs(value), 1e-3) for name, value in answer.items()}
    loose = {"loss": 1e-4, "accuracy": 1e-9, "nc4": 1e-9}
    return {
        name: (value, float(result.get(name, np.nan)))
        for name, value in answer.items()
        if not abs(value - float(result.get(name, np.nan))) <= loose.get(name, tolerance) * scale[name]
    }


def compare(case: Case, answers: list[dict[str, float]], result: Mapping[str, Any], said: str) -> tuple[str, str]:
    best: tuple[int, str, dict[str, tuple[float, float]]] | None = None
    for reading, answer in zip(case.readings, answers, strict=True):
        apart = differences(answer, result, reading.tolerance)
        if not apart:
            if reading.quiet or (said and all(word in said for word in reading.mentions)):
                return "agrees", reading.name + (f"; warned: {said}" if said else "")
            return "WRONG", f"{reading.name}, without a word"
        if best is None or len(apart) < best[0]:
            best = len(apart), reading.name, apart
    if best is None:
        return "WRONG", f"measured (nc1 {result['nc1']:.4g}) though its logits are no linear function of one vector"
    shown = ", ".join(f"{name} {value:.4g} for {right:.4g}" for name, (right, value) in list(best[2].items())[:6])
    return "WRONG", f"nearest to '{best[1]}': {shown}" + (f"; warned: {said}" if said else "")


def attempt(case: Case, model: nn.Module, **options: Any) -> tuple[Any, str, str]:
    """The result (or None), what was warned of, and the error's words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = nc.measure(model, case.batches(), progress=False, **{**case.options, **options})
        except nc.InputError as error:
            return None, "", str(error)
    said = " | ".join(str(one.message) for one in caught if issubclass(one.category, nc.NeuralCollapseWarning))
    return result, said, ""


def judge(case: Case) -> Row:
    """The verdict on one case: the head by name, and found where this version finds it."""
    start = time.perf_counter()
    try:
        model = made(case)
        answers, layer = expected(case, model)
    except ImportError as error:
        return Row(case.name, "missing", str(error).splitlines()[0], 0.0)
    except Exception as error:
        return Row(case.name, "unread", f"the script's own pass: {one_line(error)}", time.perf_counter() - start)

    def fresh() -> nn.Module:
        return model if case.prepare else made(case)

    try:
        named = {"layers": [case.layer]} if case.layer else {}
        verdicts = [verdict_of(case, answers, layer, attempt(case, fresh(), classifier=case.head, **named))]
        finds = inspect.signature(nc.measure).parameters["classifier"].default is None
        if finds and case.searched and not case.layer:
            found = verdict_of(case, answers, layer, attempt(case, fresh()))
            verdicts.append((found[0], f"found: {found[1]}"))
    except Exception as error:
        return Row(case.name, "crashed", one_line(error), time.perf_counter() - start)
    order = ["WRONG", "refused", "agrees"]
    worst = min((one[0] for one in verdicts), key=order.index)
    words = verdicts[0][1] if len({one[0] for one in verdicts}) == 1 else "; ".join(": ".join(one) for one in verdicts)
    return Row(case.name, worst, words, time.perf_counter() - start)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def verdict_of(
    case: Case, answers: list[dict[str, float]], layer: dict[str, float], tried: tuple[Any, str, str]
) -> tuple[str, str]:
    result, said, refusal = tried
    if refusal:
        return "refused", refusal
    verdict = compare(case, answers, result, said)
    if verdict[0] == "agrees" and case.layer:
        apart = differences(layer, result["layers"][case.layer], 1e-6)
        if apart:
            shown = ", ".join(f"{name} {value:.4g} for {right:.4g}" for name, (right, value) in apart.items())
            return "WRONG", f"layer {case.layer}: {shown}"
        return "agrees", f"layer {case.layer}" + (f"; warned: {said}" if said else "")
    return verdict


def made(case: Case) -> nn.Module:
    torch.manual_seed(0)
    model = case.build().eval()
    if case.prepare:
        ready(model, case)
    return model


def ready(model: nn.Module, case: Case) -> None:
    """Heads of random rows and biases (some are made as zeros), and batch statistics of the data."""
    named = dict(model.named_modules())
    for name in case.watch or (case.head,):
        for key, value in named[name].named_parameters():
            if value.dim() >= 2:
                nn.init.normal_(value, std=value[0].numel() ** -0.5)
            elif key.endswith("bias"):
                nn.init.normal_(value, std=0.1)
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for one in norms:
            if one.affine:  # as after training: two norms of one input do not give the same
                nn.init.uniform_(one.weight, 0.5, 1.5)
                nn.init.normal_(one.bias, std=0.1)
            one.reset_running_stats()
            one.momentum = None  # the mean over all batches
            one.train()
        with torch.no_grad():
            for batch in case.batches():
                inputs, _ = inputs_and_labels(batch)
                model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    model.eval()


def table(rows: Iterable[Row]) -> str:
    lines = ["| model | verdict | in words | s |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {row.name} | {row.verdict} | {row.words.replace('|', '/').replace(chr(10), ' ')} | {row.seconds:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def cases() -> Iterator[Case]:
    yield from head_cases()
    yield from layer_cases()
    yield from torchvision_cases()
    yield from timm_cases()
    yield from transformers_cases()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="nc.measure against brute force on real architectures")
    parser.add_argument("--only", default="", help="run the models in whose name this regular expression is found")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for case in cases():
        if re.search(options.only, case.name, re.IGNORECASE):
            rows.append(judge(case))
            print(f"{rows[-1].verdict:8} {rows[-1].seconds:5.1f} s  {case.name}", file=sys.stderr, flush=True)
    print(table(rows))
    counts = Counter(row.verdict for row in rows)
    print(f"\n{len(rows)} models: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")
    return 1 if counts["WRONG"] + counts["crashed"] + counts["unread"] else 0


if __name__ == "__main__":
    sys.exit(main())
