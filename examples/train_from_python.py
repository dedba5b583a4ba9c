"""A learned and a fixed classifier trained from Python, as `neuralcollapse train` would; each run has its page.

python examples/train_from_python.py --epochs 20 --out runs/python
"""

import argparse
from dataclasses import replace
from pathlib import Path

import neuralcollapse as nc

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--out", default="runs/python")
options = parser.parse_args()

learned = nc.TrainConfig(data="digits", network="mlp", width=128, feature_dim=32, epochs=options.epochs, loggers=())
fixed = replace(learned, frame="simplex")
for config in (learned, fixed):
    out = Path(f"{options.out}-{config.frame}")
    if (out / "config.yaml").is_file():  # stopped earlier, or whole: then nothing is done
        nc.resume(out, {"epochs": options.epochs})
    else:
        nc.train(config, out)
    run = nc.read_run(out)
    accuracy, nc1 = run.last.test["accuracy"], run.last.measures["nc1"]
    print(f"{run.name}: {len(run.records)} records, test accuracy {accuracy:.3f}, NC1 {nc1:.3g}")
    print(nc.write_page(out))
