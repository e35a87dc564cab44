"""The classifier: one backbone, a head for morphology classes and a head for rare targets.

Pixels come in as the shards hold them (uint8) and are normalised inside the network, so that
training and scanning cannot differ. A model folder holds safetensors weights and JSON only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, ResNetConfig

from galray.classifier.targets import DUST_LANE_EARLY_TYPE, MORPHOLOGY, UNKNOWN, Target
from galray.core.errors import ConfigError, InputError, nearest
from galray.core.models import refuse_pickled

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

BACKBONES: Mapping[str, PreTrainedConfig] = {
    "resnet-tiny": ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    "resnet-small": ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    "resnet-18": ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    ),
}


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier looks at, and what it tells.

    Parameters
    ----------
    backbone : str
        A key of `BACKBONES`.
    size_px : int
        Height and width of the images, in pixels.
    classes : tuple of Target
        The morphology classes, one logit each, exclusive.
    targets : tuple of Target
        The rare targets, one binary logit each; empty for a network that tells classes apart and no more.
    prevalence : tuple of float
        Share of positives that each target's probability assumes (`Balance.assumed_prevalence` of the
        training set); `metrics.shift_prior` leads from it to a survey's. Empty: not recorded.
    """

    backbone: str = "resnet-small"
    size_px: int = 64
    classes: tuple[Target, ...] = MORPHOLOGY
    targets: tuple[Target, ...] = (DUST_LANE_EARLY_TYPE,)
    prevalence: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            close = nearest(self.backbone, BACKBONES)
            raise ConfigError(f"no backbone {self.backbone!r}{close}; choose from {', '.join(BACKBONES)}")
        if self.size_px < 32:
            raise ConfigError(f"size_px {self.size_px} is too small for the backbone; use at least 32")
        if len(self.classes) < 2:
            raise ConfigError(
                f"{len(self.classes)} morphology class(es) leave nothing to tell apart; give two or more"
            )
        if len({*self.class_names}) + len({*self.target_names}) < len(self.classes) + len(self.targets):
            raise ConfigError("two classes or two targets have the same name; rename one")
        if self.prevalence and len(self.prevalence) != len(self.targets):
            raise ConfigError(
                f"{len(self.prevalence)} prevalence(s) for {len(self.targets)} target(s); give one each"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the morphology classes, in the order of the logits."""
        return tuple(target.name for target in self.classes)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the rare targets, in the order of the logits."""
        return tuple(target.name for target in self.targets)


class Outputs(NamedTuple):
    """Logits, float32: ``morphology`` [B, classes] and ``targets`` [B, targets]."""

    morphology: Tensor
    targets: Tensor


class Probabilities(NamedTuple):
    """Probabilities, float32: ``morphology`` [B, classes], rows sum to 1, and ``targets`` [B, targets]."""

    morphology: np.ndarray
    targets: np.ndarray


class Classifier(nn.Module):
    """A galaxy classifier with two heads.

    Parameters
    ----------
    config : ClassifierConfig
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        backbone = BACKBONES[config.backbone]
        self.backbone = AutoModel.from_config(backbone)
        width = backbone.hidden_sizes[-1]
        self.morphology_head = nn.Linear(width, len(config.classes))
        self.target_head = nn.Linear(width, len(config.targets)) if config.targets else None

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's pooled features [B, width] of uint8 images [B, H, W, 3]."""
        size_px = self.config.size_px
        if images.dtype != torch.uint8 or images.shape[1:] != (size_px, size_px, 3):
            raise InputError(
                f"the classifier takes uint8 images [B, {size_px}, {size_px}, 3], not {images.dtype} "
                f"{list(images.shape)}; resize them when decoding, or train one for this size"
            )
        # this view of [B, H, W, 3] is channels-last in memory, which the convolutions then keep
        pixels = images.permute(0, 3, 1, 2).to(self.morphology_head.weight.dtype) / 127.5 - 1.0
        return self.backbone(pixel_values=pixels).pooler_output.flatten(1)

    def forward(self, images: Tensor) -> Outputs:
        """Return the logits of uint8 images [B, H, W, 3]; float32, under autocast too."""
        features = self.features(images)
        # bfloat16 has 256 steps between 1 and 2: heads in it would tie the scores that rank candidates
        with torch.autocast(features.device.type, enabled=False):
            return self.heads(features.float())

    def heads(self, features: Tensor) -> Outputs:
        """Return the logits of features [B, width], float32."""
        targets = self.target_head(features) if self.target_head else features.new_empty(len(features), 0)
        return Outputs(self.morphology_head(features), targets)


def predict(model: Classifier, images: Tensor | np.ndarray, *, bfloat16: bool = False) -> Probabilities:
    """Return class and target probabilities of one batch.

    Parameters
    ----------
    model : Classifier
        Put into evaluation mode here, and left there.
    images : Tensor or ndarray of uint8, shape [B, size_px, size_px, 3]
    bfloat16 : bool
        Compute under bfloat16 autocast: faster, and within about 0.01 of the float32 probabilities.

    Returns
    -------
    Probabilities
        On the CPU, float32. They hold for the share of positives in ``model.config.prevalence``.
    """
    return examine(model, images, bfloat16=bfloat16)[0]


@torch.inference_mode()
def examine(
    model: Classifier, images: Tensor | np.ndarray, *, bfloat16: bool = False
) -> tuple[Probabilities, np.ndarray]:
    """Return what `predict` does, and the features that it rests on: float32 [B, width]."""
    device = model.morphology_head.weight.device
    model.eval()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
        features = model.features(torch.as_tensor(images).to(device))
    features = features.float()
    logits = model.heads(features)
    morphology, targets = logits.morphology.softmax(dim=1), logits.targets.sigmoid()
    return Probabilities(morphology.cpu().numpy(), targets.cpu().numpy()), features.cpu().numpy()


@dataclass(frozen=True)
class Balance:
    """How the loss makes up for rare positives and uneven classes.

    Attributes
    ----------
    prevalence : tuple of float
        Share of positives of each target among those known, as trained on.
    pos_weight : tuple of float
        Weight of a positive of each target against a negative.
    log_prior : tuple of float
        Added to the morphology logits in the loss (logit adjustment, Menon et al. 2021), so that the
        bare logits are those of equal shares; empty for none.
    """

    prevalence: tuple[float, ...]
    pos_weight: tuple[float, ...]
    log_prior: tuple[float, ...] = ()

    @property
    def assumed_prevalence(self) -> tuple[float, ...]:
        """Share of positives that the network's probabilities assume: w p / (w p + 1 - p)."""
        pairs = zip(self.pos_weight, self.prevalence, strict=True)
        return tuple(w * p / (w * p + 1 - p) for w, p in pairs)


def balance(
    morphology: np.ndarray,
    targets: np.ndarray,
    n_classes: int,
    *,
    max_pos_weight: float = 20.0,
    logit_adjustment: float = 0.0,
) -> Balance:
    """Measure the training set's `Balance`.

    Parameters
    ----------
    morphology : ndarray of int, shape (n,)
        Class index, -1 unknown.
    targets : ndarray of int, shape (n, targets)
        1, 0, or -1 unknown.
    n_classes : int
    max_pos_weight : float
        ``pos_weight`` is negatives over positives, but no more than this: a handful of positives
        with weights in the hundreds makes training unstable. 1 switches the weighting off.
    logit_adjustment : float
        Strength tau of Menon et al. (2021): 0 none, 1 Bayes-optimal for equal shares.
    """
    positives, negatives = (targets == 1).sum(axis=0), (targets == 0).sum(axis=0)
    shares = (positives + 0.5) / (positives + negatives + 1)  # Jeffreys: never exactly 0 or 1
    weights = np.clip((1 - shares) / shares, 1.0, max_pos_weight)
    counts = np.bincount(morphology[morphology != UNKNOWN], minlength=n_classes) + 0.5
    log_prior = logit_adjustment * np.log(counts / counts.sum())
    return Balance(
        prevalence=tuple(shares.tolist()),
        pos_weight=tuple(weights.tolist()),
        log_prior=tuple(log_prior.tolist()) if logit_adjustment else (),
    )


def loss(outputs: Outputs, morphology: Tensor, targets: Tensor, balance: Balance) -> Tensor:
    """Return the cross-entropy of the classes plus the mean binary cross-entropy of the targets.

    Parameters
    ----------
    outputs : Outputs
    morphology : Tensor of int, [B]
        Class index; -1 (unknown) is left out.
    targets : Tensor of int, [B, targets]
        1 or 0; -1 (unknown) is left out.
    balance : Balance

    Returns
    -------
    Tensor
        Scalar, float32; a head without a known label in the batch adds 0, never NaN.
    """
    logits = outputs.morphology + outputs.morphology.new_tensor(balance.log_prior or 0.0)
    of_class = F.cross_entropy(logits, morphology.long(), ignore_index=UNKNOWN, reduction="sum")
    known = targets != UNKNOWN
    of_target = F.binary_cross_entropy_with_logits(
        outputs.targets,
        targets.clamp(min=0).float(),
        weight=known.float(),
        pos_weight=outputs.targets.new_tensor(balance.pos_weight),
        reduction="sum",
    )
    return of_class / (morphology != UNKNOWN).sum().clamp(min=1) + of_target / known.sum().clamp(min=1)


def augment(images: Tensor, generator: torch.Generator, *, shift_px: int = 3) -> Tensor:
    """Return each image flipped, turned by a multiple of 90 degrees and shifted, at random.

    Parameters
    ----------
    images : Tensor, [B, H, H, C]
        Any dtype and device.
    generator : torch.Generator
        On the CPU; the same state gives the same augmentation on every device.
    shift_px : int
        Largest shift along each axis, pixels; what moves in is the mirror image of the edge.

    Returns
    -------
    Tensor
        Of the same shape, dtype and device.
    """
    n, height, width = images.shape[:3]
    if height != width or shift_px >= height:
        raise ConfigError(f"images of {height} x {width} px cannot be turned and shifted by {shift_px} px")
    transposed = torch.randint(2, (n, 1, 1), generator=generator).bool()
    rows, columns = (_flip_and_shift(n, height, shift_px, generator) for _ in range(2))
    rows, columns = rows[:, :, None], columns[:, None, :]
    pixels = torch.where(transposed, columns * height + rows, rows * height + columns)
    pixels += torch.arange(n)[:, None, None] * height * height
    return images.flatten(0, 2).index_select(0, pixels.flatten().to(images.device)).view_as(images)


def _flip_and_shift(n: int, size_px: int, shift_px: int, generator: torch.Generator) -> Tensor:
    """Return the pixel along one axis that lands at each place: int64 [n, size_px]."""
    shift = torch.randint(-shift_px, shift_px + 1, (n, 1), generator=generator)
    flip = torch.randint(2, (n, 1), generator=generator).bool()
    last = size_px - 1
    pixel = (torch.arange(size_px) + shift).abs()
    pixel = last - (last - pixel).abs()
    return torch.where(flip, last - pixel, pixel)


def save(model: Classifier, folder: Path | str) -> None:
    """Write a model folder: safetensors weights, then the config.

    Raises
    ------
    InputError
        If the folder already holds a classifier.
    """
    folder = Path(folder)
    if (folder / CONFIG_FILE).exists():
        raise InputError(f"{folder} already holds a model; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE)
    text = json.dumps({"kind": "galray classifier", "version": 1, **asdict(model.config)}, indent=2)
    (folder / CONFIG_FILE).write_text(text + "\n")


def load(folder: Path | str) -> Classifier:
    """Open a model folder, in evaluation mode on the CPU.

    Raises
    ------
    InputError
        If the folder is no classifier, is damaged, or holds a pickled file: unpickling runs
        whatever code the file's author put there.
    """
    folder = Path(folder)
    refuse_pickled(folder)
    model = Classifier(_read_config(folder / CONFIG_FILE))
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder / WEIGHTS_FILE} does not hold this model's weights: {error}") from error
    return model.eval()


def _read_config(path: Path) -> ClassifierConfig:
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        if (fields.pop("kind"), fields.pop("version")) != ("galray classifier", 1):
            raise ValueError("it is another kind or version of model")
        fields.update({key: _targets(fields[key]) for key in ("classes", "targets")})
        fields.update(prevalence=tuple(map(float, fields["prevalence"])))
        return ClassifierConfig(**fields)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} does not describe a galray classifier ({error}); train one with jobs/classify.py"
        ) from error


def _targets(fields: Sequence[Mapping[str, str]]) -> tuple[Target, ...]:
    return tuple(Target(**target) for target in fields)
