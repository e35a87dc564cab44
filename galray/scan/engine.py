"""What runs a classifier's network: torch, compiled or not, or OpenVINO; held to plain torch in float32."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from galray.classifier import network
from galray.classifier.network import Classifier
from galray.core.config import require
from galray.core.errors import ConfigError, nearest
from galray.core.precision import StatedPrecision
from galray.core.storage import Location
from galray.data.images import decode_rgb, resize
from galray.data.mock import MockConfig, cutout_jpeg, draw_truth

ENGINES = ("torch", "compiled", "openvino")
TOLERANCE = 1e-4  # of a probability in float32
TOLERANCE_BFLOAT16 = 0.02
_N_CHECKED = 32


@dataclass(frozen=True)
class Engine:
    """How a network is run; cheap to send to workers.

    Attributes
    ----------
    name : str
        One of `ENGINES`.
    precision : str
        In which the backbone computes; the heads always do in float32.
    """

    name: str = "torch"
    precision: StatedPrecision = "float32"

    def __post_init__(self) -> None:
        require(
            self.name in ENGINES,
            f"--engine {self.name!r}{nearest(self.name, ENGINES)}; choose from {', '.join(ENGINES)}.",
        )

    @property
    def bfloat16(self) -> bool:
        """Whether the backbone computes in bfloat16."""
        return self.precision == "bfloat16"

    @property
    def is_reference(self) -> bool:
        """Whether it is torch in float32, which the others are held to."""
        return self == Engine()

    @property
    def tolerance(self) -> float:
        """Largest difference of a probability from the reference's that is accepted."""
        return TOLERANCE_BFLOAT16 if self.bfloat16 else TOLERANCE

    def load(self, classifier: Location) -> Classifier:
        """Open a published classifier, ready for `network.predict`.

        Raises
        ------
        ConfigError
            Where OpenVINO is not installed.
        """
        model = network.open_published(classifier)
        if self.name == "openvino":
            return OpenVinoClassifier(model, self.bfloat16)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        if self.name == "compiled":
            model.backbone.compile(dynamic=True)  # at the first batch; a unit's last one may be smaller
        return model


class OpenVinoClassifier(Classifier):
    """A classifier whose backbone OpenVINO runs, on one core; the heads stay torch's.

    Parameters
    ----------
    model : Classifier
        On the CPU.
    bfloat16 : bool
    """

    def __init__(self, model: Classifier, bfloat16: bool) -> None:
        super().__init__(model.config)
        self.load_state_dict(model.state_dict())
        self._compiled = _compiled(model.eval(), bfloat16)

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's pooled features [B, width] of uint8 images [B, H, W, 3]."""
        return torch.from_numpy(self._compiled(images.numpy())[0])


class _Features(nn.Module):
    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.features(images)


def _compiled(model: Classifier, bfloat16: bool) -> Any:
    if find_spec("openvino") is None:
        raise ConfigError("--engine openvino needs OpenVINO: pip install 'galray[openvino]', or use torch.")
    import openvino  # pyright: ignore[reportMissingImports]  # an extra

    size_px = model.config.size_px
    example = torch.zeros(2, size_px, size_px, 3, dtype=torch.uint8)
    any_count = {"images": {0: torch.export.Dim("count")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what OpenVINO calls in torch
        warnings.simplefilter("ignore", DeprecationWarning)
        exported = torch.export.export(_Features(model), (example,), dynamic_shapes=any_count)
        converted = openvino.convert_model(exported)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    return openvino.Core().compile_model(converted, "CPU", settings)


def check_agreement(classifiers: tuple[Location, ...], engine: Engine) -> dict[str, Any]:
    """Compare an engine's probabilities with torch's in float32, on mock galaxies.

    Parameters
    ----------
    classifiers : tuple of Location
    engine : Engine

    Returns
    -------
    dict
        For the manifest: the engine, and the largest difference where it is not the reference.

    Raises
    ------
    ConfigError
        Where the difference is not tolerable, or the engine not installed, or nothing can be compiled.
    """
    told = {"name": engine.name, "precision": engine.precision}
    if engine.is_reference:
        return told
    torch.set_num_threads(1)
    largest = max(_difference(classifier, engine) for classifier in classifiers)
    if not largest <= engine.tolerance:
        raise ConfigError(
            f"--engine {engine.name} in {engine.precision} differs from torch in float32 by {largest:.2g} "
            f"on mock galaxies, where {engine.tolerance:g} is tolerated. "
            "Use --engine torch --precision float32."
        )
    return {**told, "largest_difference": largest, "tolerance": engine.tolerance, "images": _N_CHECKED}


@contextmanager
def _compiling(engine: Engine) -> Iterator[None]:
    """Tell what keeps torch's compiler from compiling."""
    if engine.name != "compiled":
        yield
        return
    from torch._dynamo.exc import BackendCompilerFailed  # two seconds, which other engines can do without
    from torch._inductor.exc import InductorError

    try:
        yield
    except (BackendCompilerFailed, InductorError) as error:
        cause = " ".join(str(error).splitlines()[:2])
        raise ConfigError(
            f"--engine compiled: torch cannot compile the network here: {cause}. Install a C++ compiler such "
            "as g++, or use --engine torch."
        ) from error


def _difference(classifier: Location, engine: Engine) -> float:
    reference = Engine().load(classifier)
    images = mock_images(reference.config.size_px, _N_CHECKED)
    expected = network.predict(reference, images)
    with _compiling(engine):
        found = network.predict(engine.load(classifier), images, bfloat16=engine.bfloat16)
    pairs = [(expected.morphology, found.morphology), (expected.targets, found.targets)]
    return float(max(np.abs(a - b).max() for a, b in pairs if a.size))


def mock_images(size_px: int, count: int) -> np.ndarray:
    """Return images of mock galaxies; uint8, shape (count, size_px, size_px, 3)."""
    mock = MockConfig()
    galaxies = draw_truth(mock, 0, count).to_pylist()
    return np.stack([resize(decode_rgb(cutout_jpeg(mock, galaxy)), size_px) for galaxy in galaxies])
