"""The classifier: one backbone, a head for morphology classes and a head for rare targets.

Pixels come in as the shards hold them (uint8) and are normalised inside the network, so that
training and scanning cannot differ. A model folder holds safetensors weights and JSON only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from galray.classifier.backbones import PRETRAINED, architecture_of, build, width_of
from galray.classifier.targets import DUST_LANE_EARLY_TYPE, MORPHOLOGY, Target
from galray.classifier.votes import expected_fractions
from galray.core.errors import ConfigError, InputError
from galray.core.manifest import local_folder
from galray.core.models import refuse_pickled
from galray.core.schema import N_ANSWERS
from galray.core.storage import Location

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier looks at, and what it tells.

    Parameters
    ----------
    backbone : str
        A key of `backbones.BACKBONES`, or ``pretrained``: `architecture` then says what it is.
    size_px : int
        Height and width of the images, in pixels.
    classes : tuple of Target
        The morphology classes, one logit each, exclusive.
    targets : tuple of Target
        The rare targets, one binary logit each; empty for a network that tells classes apart and no more.
    prevalence : tuple of float
        Share of positives that each target's probability assumes; `calibration.shift_prior` leads from it to
        a survey's. Empty: not recorded.
    class_shares : tuple of float
        Share of each class that the classes' probabilities assume. Empty: not recorded.
    votes : bool
        Whether it also tells the volunteers' votes, from which its features then learn.
    architecture : mapping
        A pretrained backbone's configuration, as transformers writes it; empty for a built-in one.
    """

    backbone: str = "resnet-small"
    size_px: int = 64
    classes: tuple[Target, ...] = MORPHOLOGY
    targets: tuple[Target, ...] = (DUST_LANE_EARLY_TYPE,)
    prevalence: tuple[float, ...] = ()
    class_shares: tuple[float, ...] = ()
    votes: bool = False
    architecture: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.backbone != PRETRAINED:
            architecture_of(self.backbone, self.size_px)
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
        if self.class_shares and len(self.class_shares) != len(self.classes):
            raise ConfigError(
                f"{len(self.class_shares)} share(s) for {len(self.classes)} class(es); give one each"
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
    """Logits, float32: ``morphology`` [B, classes], ``targets`` [B, targets], ``votes`` [B, 37] or None."""

    morphology: Tensor
    targets: Tensor
    votes: Tensor | None = None


class Probabilities(NamedTuple):
    """Probabilities, float32: ``morphology`` [B, classes], rows sum to 1, and ``targets`` [B, targets].

    Where votes are told, ``votes`` [B, 37] are the expected fractions.
    """

    morphology: np.ndarray
    targets: np.ndarray
    votes: np.ndarray | None = None


class Shares(NamedTuple):
    """Shares of the ``classes``, and of positives of the targets (``prevalence``), all in (0, 1)."""

    classes: tuple[float, ...]
    prevalence: tuple[float, ...]


class Classifier(nn.Module):
    """A galaxy classifier with two heads.

    Parameters
    ----------
    config : ClassifierConfig
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        architecture = config.architecture or architecture_of(config.backbone, config.size_px)
        self.backbone = build(architecture)
        width = width_of(architecture)
        self.morphology_head = nn.Linear(width, len(config.classes))
        self.target_head = nn.Linear(width, len(config.targets)) if config.targets else None
        self.votes_head = nn.Linear(width, N_ANSWERS) if config.votes else None

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
        votes = self.votes_head(features) if self.votes_head else None
        return Outputs(self.morphology_head(features), targets, votes)


@torch.no_grad()
def shift_priors(model: Classifier, assumed: Shares, wanted: Shares) -> None:
    """Move a classifier's outputs from one set of shares to another, in place.

    ``logit p' = logit p - logit assumed + logit wanted`` for the targets, and its like for the classes
    (Saerens et al. 2002, equation 4): a shift of the heads' biases.
    """
    shift = torch.tensor(wanted.classes).log() - torch.tensor(assumed.classes).log()
    model.morphology_head.bias.add_(shift.to(model.morphology_head.bias))
    if model.target_head:
        shift = torch.tensor(wanted.prevalence).logit() - torch.tensor(assumed.prevalence).logit()
        model.target_head.bias.add_(shift.to(model.target_head.bias))


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
        On the CPU, float32. They hold for the shares in ``model.config``'s `prevalence` and `class_shares`.
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
    votes = expected_fractions(logits.votes).cpu().numpy() if logits.votes is not None else None
    return Probabilities(morphology.cpu().numpy(), targets.cpu().numpy(), votes), features.cpu().numpy()


def symmetries(images: np.ndarray) -> Iterator[np.ndarray]:
    """Yield images, shape (n, H, H, 3), as they are, turned, and mirrored: in their eight symmetries."""
    for seen in (images, images[:, :, ::-1]):
        for quarter_turns in range(4):
            yield np.ascontiguousarray(np.rot90(seen, quarter_turns, axes=(1, 2)))


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
    model = Classifier(settings_of(folder))
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder / WEIGHTS_FILE} does not hold this model's weights: {error}") from error
    return model.eval()


def open_published(classifier: Location) -> Classifier:
    """Open a published classifier, its files checked, as `load` does."""
    with local_folder(classifier, "classifier") as folder:
        return load(folder)


def published_settings(classifier: Location, kind: str = "classifier") -> ClassifierConfig:
    """Read what a published classifier tells apart and how, its files checked, without building it."""
    with local_folder(classifier, kind) as folder:
        return settings_of(folder)


def settings_of(folder: Path | str) -> ClassifierConfig:
    """Read what a model folder's network tells apart and how, without building it.

    Raises
    ------
    InputError
        If the folder is no classifier.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        if (fields.pop("kind"), fields.pop("version")) != ("galray classifier", 1):
            raise ValueError("it is another kind or version of model")
        fields.update({key: _targets(fields[key]) for key in ("classes", "targets")})
        for name in ("prevalence", "class_shares"):
            fields[name] = tuple(map(float, fields.get(name, ())))
        return ClassifierConfig(**fields)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} does not describe a galray classifier ({error}); train one with jobs/classify.py"
        ) from error


def _targets(fields: Sequence[Mapping[str, str]]) -> tuple[Target, ...]:
    return tuple(Target(**target) for target in fields)
