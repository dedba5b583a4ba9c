"""The checkpoints that a run has kept, measured again on its training set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from neuralcollapse.capture.collect import Capture
from neuralcollapse.checkpoints.series import measure_run
from neuralcollapse.data.batches import Batches
from neuralcollapse.data.load import load_data
from neuralcollapse.data.splits import Split
from neuralcollapse.loops.loaders import MappedBatches
from neuralcollapse.loops.recorder import Recorder
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.records import Record
from neuralcollapse.training.network import network_for
from neuralcollapse.training.run import EVAL_BATCH, head_decay, known_decays
from neuralcollapse.training.run_config import check_trusted, read_config
from neuralcollapse.training.step import Classification


def remeasure(
    run: RunFolder,
    *,
    certify_head: bool = False,
    progress: bool = True,
    trust_code: bool = False,
    on_record: Callable[[Record, Capture], None] | None = None,
) -> list[Record]:
    """A record of each checkpoint that a run has kept, in order; the run folder stays as it is.

    Args:
        run: the folder.
        certify_head: compare the last layer with its exact optimum.
        progress: show a progress bar for each checkpoint (on a terminal only).
        trust_code: import the code that the folder's configuration names, such as `network: my_module:function`.
        on_record: called with each record and the capture that it was made from.

    Raises:
        InputError: there are no checkpoints, the configuration does not fit, it names code and `trust_code` is not set,
            or weights are of another network, or were changed since they were written.
    """
    config = read_config(run)
    if certify_head:
        config = replace(config, certify_head=True)  # which is refused where no certificate holds
    check_trusted(config, run, trust_code)
    data = load_data(config.data, **config.data_options)
    network = network_for(config, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = Classification(network, config, data).to(device)

    def batches(split: Split) -> MappedBatches:
        return MappedBatches(
            Batches(split, EVAL_BATCH, device=device), lambda batch: (module.inputs(batch[0].to(device)), batch[1])
        )

    recorder = Recorder(
        batches(data.train),
        batches(data.test) if len(data.test.labels) else None,
        classifier=module.classifier_name,
        layers=config.layers,
        test_measures=config.test_measures,
        head_decay=head_decay(config) if certify_head else None,
        decays=known_decays(config),
        loss_name=config.loss,
        loss=module.loss,
        progress=progress,
        on_record=on_record,
    )
    return list(measure_run(recorder, network, run))
