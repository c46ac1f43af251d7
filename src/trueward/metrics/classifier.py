"""A small convolutional classifier: its penultimate layer is the feature space that images are compared in.

Inception features say little about 8x8 digits; a classifier of the data themselves does. Two are bundled, made by

    python -m trueward.metrics.classifier digits
    python -m trueward.metrics.classifier mnist

and `train_classifier` makes one for labelled images of your own. Weights are stored in half precision with a JSON record of
how they were made and how often the classifier is right on images it has not seen.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from trueward import records
from trueward.data import Dataset, load_data
from trueward.naming import check_name

FOLDER = Path(__file__).with_name("weights")
BUNDLED = ("digits", "mnist")
_EPOCHS = {"digits": 60, "mnist": 6}


class Classifier(nn.Module):
    """Convolutions and halvings down to at most 7 pixels, one layer of features, one of classes.

    Values outside `data_range` are cut to it first, as they would be in a picture.

    Args:
        shape: (channels, height, width) of the images.
        num_classes: number of classes.
        features: size of the penultimate layer.
        width: channels of the first convolution; doubled at every halving.
        data_range: (low, high) of the images it is given.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        features: int = 64,
        width: int = 16,
        data_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"A classifier needs images (channels, height, width), got shape {tuple(shape)}.")
        self.config: dict[str, Any] = {
            "shape": list(shape),
            "num_classes": num_classes,
            "features": features,
            "width": width,
            "data_range": list(data_range),
        }
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.data_range = (float(data_range[0]), float(data_range[1]))
        channels, height, spread = shape
        layers: list[nn.Module] = []
        while True:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
            if max(height, spread) <= 7 or min(height, spread) < 2:
                break
            layers.append(nn.MaxPool2d(2))
            height, spread, width = height // 2, spread // 2, min(2 * width, 128)
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.neck = nn.Linear(channels * height * spread, features)
        self.head = nn.Linear(features, num_classes)
        self.dropout = nn.Dropout(0.3)

    def features(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch features"]:
        """The penultimate activations of images `x`, values in `data_range`."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"The classifier takes images of shape {self.shape}, got {tuple(x.shape[1:])}.")
        low, high = self.data_range
        x = (2.0 * (x.to(self.head.weight.dtype) - low) / (high - low) - 1.0).clamp(-1.0, 1.0)
        return functional.relu(self.neck(self.body(x)))

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch classes"]:
        """Log-odds of the classes."""
        return self.head(self.dropout(self.features(x)))

    @torch.no_grad()
    def classify(self, x: Float[Tensor, "n c h w"], batch_size: int = 500) -> Int[Tensor, " n"]:
        """The most probable class of every image, (n,) int64 on the CPU."""
        device = self.head.weight.device
        return torch.cat([self(part.to(device)).argmax(1).cpu() for part in x.split(batch_size)])

    def accuracy(self, x: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]) -> float:
        """The share of images whose class is `labels`."""
        if labels.shape != (len(x),):
            raise ValueError(f"labels must have shape ({len(x)},), one for each image, got {tuple(labels.shape)}.")
        return (self.classify(x) == labels.cpu()).double().mean().item()


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


def save_classifier(model: Classifier, path: str | Path, record: dict[str, Any] | None = None) -> Path:
    """Writes the weights in half precision to `path` (.safetensors) and the record beside it (.json)."""
    from safetensors.torch import save

    path = Path(path).with_suffix(".safetensors")
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    with records.atomic(path) as part:
        part.write_bytes(save(state))
    records.write_json(path.with_suffix(".json"), {"config": model.config, **(record or {})})
    return path


def load_classifier(name: str | Path) -> Classifier:
    """A bundled classifier ("digits", "mnist"), or one that :func:`save_classifier` wrote, in evaluation mode.

    Raises:
        ValueError: unknown name; a file that is missing, damaged or does not fit its record.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = FOLDER / f"{name}.safetensors" if str(name) in BUNDLED else Path(name).with_suffix(".safetensors")
    if not path.is_file():
        if path.parent == Path("."):
            check_name("classifier", str(name), BUNDLED)
        raise ValueError(f"There is no classifier at {path}.")
    config = records.read_json(path.with_suffix(".json"))["config"]
    model = Classifier(
        tuple(config["shape"]), config["num_classes"], config["features"], config["width"], tuple(config["data_range"])
    )
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or does not fit its record ({str(error).splitlines()[0]}).") from None
    return model.eval().requires_grad_(False)


def classifier_record(name: str) -> dict[str, Any]:
    """How a bundled classifier was made and its accuracy on images it has not seen."""
    check_name("classifier", name, BUNDLED)
    record: dict[str, Any] = records.read_json(FOLDER / f"{name}.json")
    return record


def make(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Makes a bundled classifier again."""
    check_name("classifier", name, BUNDLED)
    data, held_out = load_data(name), load_data(name, split="test")
    model, record = train_classifier(
        data, held_out, epochs=_EPOCHS[name], width=32 if name == "digits" else 16, verbose=True
    )
    save_classifier(model, folder / name, record)
    return record


if __name__ == "__main__":
    for wanted in sys.argv[1:] or BUNDLED:
        made = make(wanted)
        print(f"{wanted}: right on {made['held_out_accuracy']:.2%} of {made['held_out_images']} held-out images")
