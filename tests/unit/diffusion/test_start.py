"""Going on from a published denoiser: the very same one, and none that has seen what judges."""

from pathlib import Path

import pytest
import torch

from galray.core.errors import ConfigError, LineageError
from galray.core.manifest import publish
from galray.core.storage import open_location
from galray.data.labelled import Labelled
from galray.diffusion.denoiser import Denoiser
from galray.diffusion.objective import Diffusion, FlowMatching
from galray.diffusion.pipeline import GalaxyPipeline
from galray.diffusion.start import Start, check_start
from tests.unit.diffusion.conftest import TINY

# diffusers 0.42 converts a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def published(
    denoiser: Denoiser, folder: Path, splits: list[str], known: dict[str, str] | None = None
) -> str:
    """Publish a denoiser that has seen these splits."""
    denoiser.scheduler = FlowMatching().scheduler()
    GalaxyPipeline.from_denoiser(denoiser).save_pretrained(folder / "saved")
    location = open_location(str(folder / "denoiser"))
    with publish(location, "denoiser") as publication:
        publication.add_folder(folder / "saved")
        publication.lineage = {"splits": splits, **(known or {})}
    return location.uri


def test_training_goes_on_with_the_published_weights_and_codec(tiny: Denoiser, tmp_path: Path) -> None:
    start = Start(TINY, FlowMatching(), start_from=published(tiny, tmp_path, ["train"]))
    found = start.denoiser(seed=7, statistics=None)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), tiny.parameters(), strict=True))
    assert torch.equal(start.codec().mean, tiny.codec.mean)
    assert all(p.requires_grad for p in found.unet.parameters())
    assert not start.fits_statistics


def test_a_start_of_another_kind_is_refused(tiny: Denoiser, tmp_path: Path) -> None:
    uri = published(tiny, tmp_path, ["train"])
    with pytest.raises(ConfigError, match="--objective"):
        Start(TINY, Diffusion(), start_from=uri).denoiser(0, None)
    with pytest.raises(ConfigError, match="leave --stable-diffusion"):
        Start(TINY, Diffusion(), stable_diffusion="here", start_from=uri)


def test_a_start_that_has_seen_what_judges_is_refused(tiny: Denoiser, tmp_path: Path) -> None:
    assert check_start("", None) == {}
    with pytest.raises(LineageError, match="test galaxies"):
        check_start(published(tiny, tmp_path, ["test", "train"]), None)


def test_a_start_that_has_known_hidden_labels_is_refused(tiny: Denoiser, tmp_path: Path) -> None:
    """One that was shown images alone may be gone on from, whatever is hidden."""
    (tmp_path / "labels.csv").write_text("galaxy_id\n3\n")
    labelled = Labelled.read(open_location(str(tmp_path / "labels.csv")))
    with pytest.raises(LineageError, match="has known labels"):
        check_start(published(tiny, tmp_path / "all", ["train"]), labelled)
    uri = published(tiny, tmp_path / "none", ["train"], {"labelled": ""})
    assert list(check_start(uri, labelled)) == [uri]
