"""How a classifier is trained: a plain supervised loop whose result depends on its arguments alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from trueward import records
from trueward.data import Dataset, load_data
from trueward.metrics.classifier.network import BUNDLED, FOLDER, Classifier, save_classifier
from trueward.naming import check_name

_EPOCHS = {"digits": 60, "mnist": 6}
_WIDTH = {"digits": 32, "mnist": 16}


def train_classifier(
    data: Dataset,
    held_out: Dataset,
    *,
    epochs: int = 20,
    batch_size: int = 100,
    learning_rate: float = 2e-3,
    features: int = 64,
    width: int = 16,
    seed: int = 0,
    verbose: bool = False,
) -> tuple[Classifier, dict[str, Any]]:
    """Trains a classifier with AdamW, a one-cycle learning rate and label smoothing of 0.05.

    The result depends on the arguments alone (on one machine with one number of threads).

    Args:
        data: labelled images to learn from.
        held_out: labelled images to measure the accuracy on; nothing is chosen by them.
        epochs, batch_size, learning_rate: of the training; the learning rate is the peak.
        features, width: of :class:`Classifier`.
        seed: of initial weights, order of the images and dropout.
        verbose: print the loss of every epoch.

    Returns:
        the classifier, in evaluation mode, and the record of its training: accuracy, seconds, arguments, versions.
    """
    for given, part in (("data", data), ("held_out", held_out)):
        if part.labels is None or data.num_classes is None:
            raise ValueError(f"{given} must have labels to train or measure a classifier.")
    if data.data_range is None:
        raise ValueError("A classifier needs images with a data_range.")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}.")
    began = time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(data.shape, data.num_classes, features, width, data.data_range)  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
        steps = -(-len(data) // batch_size)
        plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * steps, pct_start=0.2)
        model.train()
        for epoch in range(epochs):
            total = 0.0
            for part in torch.randperm(len(data)).split(batch_size):
                batch = data.batch(part)
                loss = functional.cross_entropy(model(batch["x"]), batch["class_labels"], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                plan.step()
                total += loss.item() * len(part)
            if verbose:
                print(f"epoch {epoch + 1}/{epochs}: loss {total / len(data):.4f}", flush=True)
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.copy_(parameter.half().float())  # what is stored is what was measured
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(buffer.half().float())
    assert held_out.labels is not None
    record = {
        "config": model.config,
        "held_out_accuracy": model.accuracy(held_out.x, held_out.labels),
        "held_out_images": len(held_out),
        "training_images": len(data),
        "data": data.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": seed,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "cpu_seconds": round(time.process_time() - began, 1),
        "versions": records.versions(),
    }
    return model, record


def make(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Makes a bundled classifier again."""
    check_name("classifier", name, BUNDLED)
    data, held_out = load_data(name), load_data(name, split="test")
    model, record = train_classifier(data, held_out, epochs=_EPOCHS[name], width=_WIDTH[name], verbose=True)
    save_classifier(model, folder / name, record)
    return record
