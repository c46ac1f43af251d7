"""The network of a small image classifier and its files: weights in half precision, a JSON record beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from trueward import records
from trueward.naming import check_name

FOLDER = Path(__file__).parent.with_name("weights")
BUNDLED = ("digits", "mnist")


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
