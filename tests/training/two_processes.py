"""Train with as many processes as asked for, batches of BATCH per process, and print the history as JSON.

python two_processes.py PROCESSES BATCH [process | all | layers]

With process or all, the negatives, the loss is that of all pairs, between embeddings; with layers, distil-layers alone.
"""

from __future__ import annotations

import json
import sys

import torch

import bcos_fx
from bcos_fx.training.finetune import finetune
from bcos_fx.training.settings import RunSettings
from tests.training import small_runs

if __name__ == "__main__":
    torch.set_num_threads(1)
    processes, batch = int(sys.argv[1]), int(sys.argv[2])
    kind = sys.argv[3] if len(sys.argv) > 3 else None
    loss = {} if kind is None else {"loss": "distil-pairwise", "negatives": kind}
    loss = {"loss": "distil-layers"} if kind == "layers" else loss
    pixels, labels = small_runs.images()
    network = bcos_fx.bcosify(small_runs.without_batch_statistics(), example_inputs=pixels[:2], recipe="gradual")
    found = finetune(
        network,
        (pixels, labels),
        recipe=small_runs.plain(batch_size=batch, epochs=3, clip=0.05, **loss),
        original=small_runs.without_batch_statistics() if loss else None,
        validation=small_runs.images(13),
        run=RunSettings(devices=processes, accelerator="cpu"),
    )
    rows = [[row.loss, row.accuracy, row.cosine, row.train_accuracy, row.b, row.images] for row in found.history]
    weights = sum(p.detach().double().abs().sum().item() for p in found.network.parameters())
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        sys.stdout.write(json.dumps({"history": rows, "weights": weights}) + "\n")
