"""OODScorer: outlier scores of a network's features, fitted in one pass over its training set."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse.capture.captured import CapturedBatch
from neuralcollapse.capture.collect import collect
from neuralcollapse.capture.team import Team
from neuralcollapse.checks import as_tensor, check_features, check_finite
from neuralcollapse.errors import InputError, NeuralCollapseWarning, listed
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.packed import state_device
from neuralcollapse.geometry.precision import full_precision
from neuralcollapse.ood.blocks import Blocks
from neuralcollapse.ood.evaluation import evaluate
from neuralcollapse.ood.fitted import Fitted
from neuralcollapse.ood.options import ScoreOptions
from neuralcollapse.ood.passes import captured_batches
from neuralcollapse.ood.stored import read_scorer, write_scorer
from neuralcollapse.runs.files import as_path

# Rows and values of a block on a CPU, where it should stay in the cache, and on an accelerator.
_ROWS, _VALUES = 2048, 2**22
_DEVICE_ROWS, _DEVICE_VALUES = 16384, 2**26
_CHECKED, _OTHER = 32, 0.1  # rows that are compared; the share that half precision stays far below
_SQUARES_OVERFLOW = 1e15  # the squares of larger entries, in units of a small S_W, may be no float32 numbers


class OODScorer:
    """Outlier scores of features and logits; each is higher for inputs that are more like the training set.

    NECO, NCI, fDBD, ViM, residual, Mahalanobis and relative Mahalanobis, energy, the largest logit and MSP, by the
    functions of these names in `ood/scores.py`. All come from the class moments of the training features and the head:
    make a scorer with `fit`, from a model and its training set, or with `from_moments`.

    The options are the same in both:

    - `scores`: the names of those that are wanted; by default all that the moments and the head allow. One that has no
      value (Mahalanobis distances where nothing varies within classes) is left out with a warning that says why, or
      refused if it was named.
    - `neco_dim`: NECO's number q of directions (K-1), or below 1 the share of the variance that they hold.
    - `neco_standardize`, `neco_max_logit`: as in the code of NECO's authors (both False).
    - `nci_alpha`: the weight of |h|_1 in NCI (0); `tune_nci_alpha` finds one on validation data.
    - `vim_dim`: directions that the residual leaves out (1,000 if d >= 2,048, 512 if 768 <= d < 2,048, else d/2).
    - `vim_alpha`: the residual's weight in ViM; found in a second pass where it is not given.
    - `fdbd_center`: "mean" divides fDBD by |h - mu_G|, "origin" by |h|.

    Attributes:
        scores: the names of the scores that `score` gives.
        undefined: score -> why it has no value here.
        layer: the dotted name of the head, if known.
        weight: (K, d) of the head, float64.
        bias: (K,).
        moments: of the training features.
        options: the options.
        vim_alpha: the residual's weight in ViM; None without it.
    """

    def __init__(
        self, moments: ClassMoments, weight: Tensor, bias: Tensor | None, options: ScoreOptions, layer: str = ""
    ) -> None:
        self.moments = moments
        self.options = options
        self.layer = layer
        self._head = (weight.detach(), None if bias is None else bias.detach())
        self._fitted = Fitted(moments, weight, bias, options)
        self.vim_alpha: float | None = options.vim_alpha
        self._blocks: dict[tuple[torch.device, torch.dtype], Blocks] = {}

    @classmethod
    @torch.no_grad()
    def from_moments(
        cls,
        moments: ClassMoments,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        features: Tensor | Iterable[Tensor] | None = None,
        layer: str = "",
        **options: Any,
    ) -> OODScorer:
        """A scorer from the class moments of the training features and the head.

        Args:
            moments: of the features that the head receives.
            weight: (K, d) rows of the head.
            bias: (K,); zero by default.
            features: the training features (N, d), or blocks of them, for ViM's alpha; without them and `vim_alpha`,
                there is no ViM.
            layer: the name of the head, for `score_loader`.
            options: see above.

        Raises:
            InputError: no samples, a head that does not fit, an option that is wrong, or a score asked for by name that
                has no value.
        """
        check_moments(moments)
        scorer = cls(moments, *_head(weight, bias), ScoreOptions.of(options), layer)
        if features is not None and scorer._fitted.need_alpha:
            whole = isinstance(features, Tensor) or hasattr(features, "__array__")
            scorer._fit_alpha([as_tensor(features, "features")] if whole else features)
        scorer._fitted.check()
        return scorer

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        model: nn.Module,
        loader: Iterable[Any],
        classifier: str | nn.Module | None = None,
        num_classes: int | None = None,
        *,
        ignore_index: int | None = None,
        next_token: bool = False,
        device: torch.device | str | None = None,
        sharded: bool = False,
        progress: bool = True,
        **options: Any,
    ) -> OODScorer:
        """A scorer from a network and its training set, in one pass; a second one for ViM's alpha.

        Args:
            model: any module whose forward pass calls the layer `classifier` once.
            loader: gives (inputs, labels) of the training set without augmentation.
            classifier: the last layer, or its dotted name; found when not given.
            num_classes: K; by default that of the classifier's weight.
            ignore_index: samples with this label are left out; by default -100 with `next_token`.
            next_token: the labels are the tokens of the input, as for `neuralcollapse.measure`.
            device: where to run; by default the device of the model's parameters.
            progress: show a progress bar (on a terminal only).
            sharded: the loader gives each process of torch.distributed its own share of the samples; the scorer is the
                same in all. All processes must call this.
            options: see above.

        Raises:
            InputError: as `neuralcollapse.measure` and `from_moments`; ViM and a loader that gives no second pass.
        """
        given = ScoreOptions.of(options)
        shared: dict[str, Any] = {"ignore_index": ignore_index, "next_token": next_token, "device": device}
        passed: dict[str, Any] = {"nc4": False, "exact_sums": True, "sharded": sharded, "progress": progress}
        found = collect(model, loader, classifier, num_classes, **passed, **shared)
        scorer = cls(found.moments, found.weight, found.bias, given, found.layer)
        if scorer._fitted.need_alpha:
            team = Team.of(model, sharded=sharded)
            team.agree(model, lambda: {"options": given})
            batches = captured_batches(
                model, loader, found.layer, "fitting vim", progress=progress, team=team, **shared
            )
            scorer._fit_alpha((batch.features for batch in batches), team, expected=found.moments.num_samples)
        scorer._fitted.check()
        return scorer

    def __repr__(self) -> str:
        sizes = f"num_classes={self.moments.num_classes}, feature_dim={self.moments.feature_dim}"
        return f"OODScorer({sizes}, scores={self.scores})"

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the scores that `score` gives."""
        return self._fitted.names

    @property
    def undefined(self) -> dict[str, str]:
        """Score -> why it has no value here."""
        return dict(self._fitted.undefined)

    @property
    def weight(self) -> Tensor:
        """(K, d) of the head, float64."""
        return self._fitted.weight

    @property
    def bias(self) -> Tensor:
        """(K,) of the head, float64."""
        return self._fitted.bias

    @torch.no_grad()
    def score(self, features: Tensor, logits: Tensor | None = None) -> dict[str, Tensor]:
        """The scores of features, block by block, on their device.

        Args:
            features: (N, d) inputs of the head: float64 for scores to about 12 digits; float32, float16 and bfloat16
                are scored in float32 (Mahalanobis distances in float64 where S_W is so narrow that they need it, all in
                float64 where an entry is above 1e15).
            logits: (N, K); worked out from the features where they are not given.

        Returns:
            name -> (N,) scores, higher in distribution, in the dtype above; "msp" in float64.

        Raises:
            InputError: features or logits of a wrong shape, or not finite.
        """
        return self._score(features, logits, self.scores)

    def score_loader(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        *,
        device: torch.device | str | None = None,
        progress: bool = True,
    ) -> dict[str, Tensor]:
        """The scores of the inputs that a loader gives, in its order, on the CPU.

        Args:
            model: the network that the scorer was fitted to.
            loader: gives inputs alone, or (inputs, labels, ...), or dicts. Labels are not used, but those of a
                language model, one for each token, ask for a score of each token but those of label -100.
            device: where to run; by default that of the model's parameters.
            progress: show a progress bar (on a terminal only).

        Raises:
            InputError: another head than that of the scorer, no inputs, or features that are not finite.
        """
        found: list[dict[str, Tensor]] = []
        passed: dict[str, Any] = {"device": device, "progress": progress, "labels": False}
        for batch in captured_batches(model, loader, self.layer or None, "scoring", **passed):
            if batch.features.shape[1] != self.moments.feature_dim:
                raise InputError(
                    f"expected features of dimension {self.moments.feature_dim}, got {batch.features.shape[1]} from "
                    "this network: give the one that the scorer was fitted to"
                )
            if not found:
                self._check_head(batch)
            found.append({name: part.cpu() for name, part in self.score(batch.features).items()})
        if not found:
            raise InputError("the loader gave no inputs: check its data set and drop_last")
        return {name: torch.cat([part[name] for part in found]) for name in self.scores}

    @torch.no_grad()
    def tune_nci_alpha(self, inside: Tensor, outside: Tensor) -> float:
        """Set NCI's alpha to the one, of 0 and some of each order of magnitude, whose AUROC is highest; returns it.

        Args:
            inside: (N, d) features of validation inputs like the training set.
            outside: (M, d) features of validation outliers, not those that are to be told apart in the end.

        Raises:
            InputError: the scorer has no NCI; features of a wrong shape, none, or not finite.
        """
        if "nci" not in self.scores:
            raise InputError(f"expected a scorer with the score 'nci', got {listed(self.scores)}: fit it with that too")
        found: list[tuple[Tensor, Tensor]] = []
        options = replace(self.options, nci_alpha=0.0)
        self._set_options(options)
        for features in (inside, outside):
            scores = self._score(features, None, ("nci",))["nci"].double()
            found.append((scores, as_tensor(features, "features").double().abs().sum(1)))
        size = float(found[0][0].abs().mean() / found[0][1].mean().clamp(min=torch.finfo(torch.float32).tiny))
        alphas = [0.0, *(size * 10 ** (step / 2) for step in range(-8, 5))]
        tried = [evaluate(*(scores + alpha * sums for scores, sums in found))["auroc"] for alpha in alphas]
        best = alphas[tried.index(max(tried))]
        self._set_options(replace(options, nci_alpha=best))
        return best

    def _set_options(self, options: ScoreOptions) -> None:
        self.options = self._fitted.options = options
        self._blocks = {}

    def save(self, path: str | Path) -> Path:
        """Write the scorer to a safetensors file, with a checksum: moments, head, options. Nothing is pickled."""
        weight, bias = self._head
        options = replace(self.options, vim_alpha=self.vim_alpha, scores=self.scores)
        return write_scorer(as_path(path, "a scorer's file"), self.moments, weight, bias, options, self.layer)

    @classmethod
    @torch.no_grad()
    def load(cls, path: str | Path, device: torch.device | str | None = None) -> OODScorer:
        """The scorer of a file that `save` wrote.

        Raises:
            InputError: no such file, or one that is damaged, was changed, or holds something else.
        """
        moments, weight, bias, options, layer = read_scorer(as_path(path, "a scorer's file"))
        if device is not None:
            moments = ClassMoments(moments.packed.to(state_device(device)), *moments.shape)
        return cls(moments, weight, bias, options, layer)

    def _check_head(self, batch: CapturedBatch) -> None:
        """Warn if a batch's logits are not those of the scorer's head, as of a network that was trained further."""
        if batch.head_logits is not batch.logits or batch.head_logits.shape[1] != len(self.weight):
            return  # the model does something to the outputs of the head that only a whole pass can make out
        kept = batch.head_logits if batch.kept is None else batch.head_logits[batch.kept[:_CHECKED]]
        features, logits = (each[:_CHECKED].to(self.weight) for each in (batch.features, kept))
        expected = features @ self.weight.T + self.bias
        # log-softmax may follow the head
        logits, expected = (each - each.mean(1, keepdim=True) for each in (logits, expected))
        off = float(torch.linalg.vector_norm(logits - expected) / torch.linalg.vector_norm(expected))
        if off > _OTHER:
            warnings.warn(
                f"the logits of this network are {off:.0%} off those of the head that the scorer was fitted to: "
                "give the same weights, or fit it again",
                NeuralCollapseWarning,
                stacklevel=3,
            )

    def _score(self, features: Tensor, logits: Tensor | None, names: tuple[str, ...]) -> dict[str, Tensor]:
        features = as_tensor(features, "features")
        check_features(features)
        count, dim = len(self.weight), self.moments.feature_dim
        if features.shape[1] != dim:
            raise InputError(f"expected features of dimension {dim}, got {features.shape[1]}: give the head's inputs")
        largest = float(torch.linalg.vector_norm(features, ord=math.inf)) if features.numel() else 0.0  # NaN stays NaN
        if not math.isfinite(largest):
            check_finite(features)
        wide = features.dtype == torch.float64 or (largest > _SQUARES_OVERFLOW and features.device.type != "mps")
        dtype = torch.float64 if wide else torch.float32
        if logits is not None:
            logits = as_tensor(logits, "logits").to(features.device)
            if tuple(logits.shape) != (len(features), count) or not logits.is_floating_point():
                raise InputError(
                    f"expected logits of shape (N, K) = ({len(features)}, {count}), got {tuple(logits.shape)} "
                    f"{logits.dtype}: a row for each row of features"
                )
            check_finite(logits, "logits")
        blocks = self._placed(features.device, dtype, names)
        on_host = features.device.type == "cpu"
        most, values = (_ROWS, _VALUES) if on_host else (_DEVICE_ROWS, _DEVICE_VALUES)
        rows = max(64, min(most, values // max(count, dim)))
        found: list[dict[str, Tensor]] = []
        with full_precision(features.device):
            for start in range(0, max(len(features), 1), rows):
                part = slice(start, start + rows)
                given = None if logits is None else logits[part].to(dtype)
                found.append(blocks.scores(features[part].to(dtype), given))
        return {name: torch.cat([part[name] for part in found]) for name in names}

    def _placed(self, device: torch.device, dtype: torch.dtype, names: tuple[str, ...]) -> Blocks:
        key = (device, dtype)
        if key not in self._blocks or self._blocks[key].names != set(names):
            self._blocks[key] = Blocks(self._fitted, names, self.vim_alpha, device, dtype)
        return self._blocks[key]

    def _fit_alpha(self, parts: Iterable[Tensor], team: Team | None = None, *, expected: int | None = None) -> None:
        """ViM's alpha, from blocks of the training features."""
        sums = torch.zeros(2, dtype=torch.float64)
        seen = 0.0
        for rows in parts:
            found = self._score(rows, None, ("residual", "max_logit"))
            sums += torch.stack([found[name].cpu().double().sum() for name in ("max_logit", "residual")])
            seen += len(rows)
        totals = (*sums.tolist(), seen)
        largest, outside, seen = totals if team is None else team.summed(*totals)
        outside = -outside
        if seen == 0 or (expected is not None and seen != expected):
            raise InputError(
                f"ViM's alpha needs a second pass over the training set, which gave {seen:.0f} samples"
                + (f" instead of {expected}" if expected else "")
                + ": give a DataLoader that can be run again, or vim_alpha, or scores without vim"
            )
        least = torch.finfo(torch.float32).eps * float(self._fitted.covariances.squares.sum().sqrt())
        undefined = self._fitted.undefined
        self._fitted.need_alpha = False
        if outside / seen <= least:
            undefined["vim"] = "no training feature has a residual beyond rounding, so that ViM cannot weigh it"
        elif largest <= 0:
            undefined["vim"] = "the mean of the largest logit is not above 0, so that ViM's alpha is not either"
        else:
            self.vim_alpha = largest / outside
            undefined.pop("vim", None)
        self._blocks = {}


def _head(weight: Any, bias: Any) -> tuple[Tensor, Tensor | None]:
    return as_tensor(weight, "weight"), None if bias is None else as_tensor(bias, "bias")
