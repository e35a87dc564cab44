"""The mock survey: repeatable, photometrically right, hard to classify, and a cousin of the real one."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import galsim
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from galray.core.errors import ConfigError
from galray.core.schema import ANSWER_INDEX, ANSWERS, DECISION_TREE, QUESTION_OF_ANSWER
from galray.data import mock, mock_light
from galray.data.images import decode_rgb, lupton_rgb, resize
from galray.data.mock import (
    TRUTH_SCHEMA,
    MockConfig,
    cutout_jpeg,
    draw_truth,
    filename_mapping,
    gz2_table,
    render_gri,
    render_tile,
    volunteers_votes,
)
from galray.data.tile_fits import open_tile
from galray.data.tiles import cut

REAL = Path(os.environ.get("GALRAY_REAL_DATA", "../shared/data"))
OUTPUT = Path(os.environ.get("GALRAY_TEST_OUTPUT", "tests/output"))
ONE_KIND: dict[str, Any] = {
    "early_type": 0.0,
    "cigar": 0.0,
    "edge_on": 0.0,
    "spiral": 0.0,
    "barred_spiral": 0.0,
}
CLASSES = ("completely_round_smooth", "in_between_smooth", "cigar_shaped_smooth", "edge_on", "spiral")


def only(kind, **options):
    chosen: dict[str, Any] = ONE_KIND | {kind: 1.0} | options
    return MockConfig(**chosen)


@pytest.fixture(scope="module")
def labelled():
    config = MockConfig(seed=5)
    truth = draw_truth(config, 0, 1500)
    return config, truth, volunteers_votes(config, truth)


@pytest.fixture(scope="module")
def tile():
    config = MockConfig(seed=2, tile_size_px=400)
    mock = render_tile(config, 3)
    buffer = BytesIO()
    mock.hdus.writeto(buffer)
    return config, mock, open_tile(buffer.getvalue(), mock.name)


def test_a_galaxy_is_the_same_in_any_chunk():
    config = MockConfig(seed=1)
    whole, part = draw_truth(config, 0, 12), draw_truth(config, 7, 9)
    assert whole.slice(7, 2).equals(part)
    assert whole.schema.equals(TRUTH_SCHEMA)
    row = whole.to_pylist()[7]
    np.testing.assert_array_equal(render_gri(config, row), render_gri(config, part.to_pylist()[0]))
    votes, alone = volunteers_votes(config, whole), volunteers_votes(config, part)
    np.testing.assert_array_equal(votes.counts[7:9], alone.counts)
    assert not whole.equals(draw_truth(MockConfig(seed=2), 0, 12))


def test_ids_are_unique_and_do_not_survive_a_float(labelled, tile):
    ids = np.concatenate([labelled[1]["galaxy_id"].to_numpy(), tile[1].truth["galaxy_id"].to_numpy()])
    assert len(np.unique(ids)) == len(ids)
    assert (ids >= 10**17).all()
    assert (ids < 10**18).all()
    assert len(np.unique(ids.astype(np.float64))) < len(ids)


def test_sersic_light_agrees_with_galsim():
    grid = mock_light.Grid(80, 0.396, (39.5, 39.5))
    truth = dict.fromkeys(TRUTH_SCHEMA.names, 0.0) | {"psf_fwhm_arcsec": 1.3, "kind": "early_type"}
    truth |= {"mag_r": 16.0, "r_half_arcsec": 2.5, "q": 0.7, "angle_deg": 30.0, "g_r": 0.8, "r_i": 0.4}
    for n in (1.0, 2.5, 4.0):
        ours = mock_light.sersic(grid, n, 2.5, 0.7, 30.0)
        exact = galsim.Sersic(n, half_light_radius=2.5, flux=1.0)  # a circle, squeezed to major axis 2.5
        exact = exact.transform(1, 0, 0, 0.7).rotate(30 * galsim.degrees) / 0.7
        psf = galsim.Kolmogorov(fwhm=1.3)
        seen: Any = galsim.Convolve(exact, psf)
        drawn = seen.drawImage(nx=80, ny=80, scale=0.396).array
        blurred = mock_light._observe(np.stack([ours] * 3), 1.3, grid)[1]
        assert np.abs(blurred - drawn).sum() < 0.02 * drawn.sum(), n
        assert blurred.max() == pytest.approx(drawn.max(), rel=0.06)


@pytest.mark.parametrize("kind", ["early_type", "cigar", "edge_on", "spiral", "barred_spiral"])
def test_rendered_flux_and_colours_are_the_drawn_ones(kind):
    config = only(kind, dust_lane_fraction_early=0, dust_lane_fraction_edge_on=0)
    grid = mock_light.Grid(192, 0.396, (95.5, 95.5))
    for row in draw_truth(config, 0, 4).to_pylist():
        row |= {"disturbance": 0.0, "shell_strength": 0.0}
        g, r, i = mock_light.galaxy_light(row, grid).sum(axis=(1, 2))
        assert r == pytest.approx(mock_light.flux_of(row["mag_r"]), rel=0.08)
        # Bulges and gradients make a galaxy redder than its disk's colour, arms bluer.
        assert -2.5 * np.log10(g / r) == pytest.approx(row["g_r"], abs=0.25)
        assert 2.5 * np.log10(i / r) == pytest.approx(row["r_i"], abs=0.15)


def test_great_bulges_outshine_their_disks_and_change_no_other_galaxy():
    few, none = only("edge_on", great_bulge_fraction_edge_on=0.3), only("edge_on")
    shares = [draw_truth(config, 0, 200)["bulge_fraction"].to_numpy() for config in (few, none)]
    great = shares[0] >= 0.5
    assert 0.2 < great.mean() < 0.4
    assert shares[1].max() < 0.5
    np.testing.assert_array_equal(shares[0][~great], shares[1][~great])


def test_dust_dims_blue_light_most_and_only_in_the_lane():
    config = only("early_type", dust_lane_fraction_early=1.0)
    rows = [row for row in draw_truth(config, 0, 30).to_pylist() if row["lane_contrast"] > 0.3]
    assert rows
    for row in rows:
        grid = mock_light.Grid(80, 0.396, (39.5, 39.5))
        ratio = mock_light.galaxy_light(row, grid) / mock_light.galaxy_light(row, grid, dusty=False)
        g, r, i = ratio.min(axis=(1, 2))
        assert g < r < i < 1.0
        assert np.median(ratio[0, :8]) > 0.9


def test_sky_noise_is_white_and_as_deep_as_sdss():
    config = only("early_type", mag_r_range=(24.0, 25.0))
    sky = np.stack([render_gri(config, row) for row in draw_truth(config, 0, 40).to_pylist()])
    spread = np.median(np.abs(sky - np.median(sky)), axis=(0, 2, 3)) * 1.4826
    # Shifting by a fraction of a pixel smooths the noise a little, as in real cutouts.
    assert (spread > 0.7 * mock_light.SKY_NOISE).all()
    assert (spread < 1.05 * mock_light.SKY_NOISE).all()


def test_votes_walk_the_tree(labelled):
    _, _, votes = labelled
    total = votes.classifications
    per_question = np.stack([votes.counts[:, q == QUESTION_OF_ANSWER].sum(axis=1) for q in range(11)], axis=1)
    assert (per_question[:, 0] == total).all()
    index = {question.name: q for q, question in enumerate(DECISION_TREE)}
    for name, q in list(index.items())[1:]:
        leading = [k for k, answer in enumerate(ANSWERS) if answer.leads_to == name]
        np.testing.assert_array_equal(per_question[:, q], votes.counts[:, leading].sum(axis=1))
    assert total.min() >= 25
    assert total.max() <= 55
    for fractions in (votes.fractions, votes.weighted_fractions, votes.debiased):
        sums = np.stack([fractions[:, q == QUESTION_OF_ANSWER].sum(axis=1) for q in range(11)], axis=1)
        np.testing.assert_allclose(sums, per_question > 0, atol=1e-9)


def test_votes_know_the_kinds_but_not_perfectly(labelled):
    _, truth, votes = labelled
    kind = truth["kind"].to_numpy()
    share = {
        (k, name): votes.weighted_fractions[kind == k, ANSWER_INDEX[name]].mean()
        for k in set(kind)
        for name in ("smooth", "edge_on", "spiral", "bar", "cigar_shaped")
    }
    assert share["early_type", "smooth"] > 0.75 > share["spiral", "smooth"]
    assert share["edge_on", "edge_on"] > 0.6 > share["cigar", "edge_on"] > 0.15  # the classic confusion
    assert share["spiral", "spiral"] > 0.5 > share["early_type", "spiral"]
    assert share["barred_spiral", "bar"] > 0.5 > share["spiral", "bar"]
    assert share["cigar", "cigar_shaped"] > 0.6 > share["early_type", "cigar_shaped"]


def selected(votes):
    f = votes.weighted_fractions
    odd_votes = f[:, ANSWER_INDEX["odd"]] * votes.classifications
    return (f[:, ANSWER_INDEX["smooth"]] >= 0.5) & (odd_votes >= 8) & (f[:, ANSWER_INDEX["dust_lane"]] >= 0.5)


def test_volunteers_find_many_dust_lanes_and_invent_few(labelled):
    config = only("early_type", dust_lane_fraction_early=1.0, seed=3)
    lanes = draw_truth(config, 0, 250)
    found = selected(volunteers_votes(config, lanes))
    assert 0.40 < found.mean() < 0.75
    contrast = lanes["lane_contrast"].to_numpy()
    assert found[contrast > np.quantile(contrast, 0.75)].mean() > 0.9
    assert found[contrast < np.quantile(contrast, 0.15)].mean() < 0.2
    _, truth, votes = labelled
    plain = ~truth["dust_lane_early_type"].to_numpy(zero_copy_only=False)
    assert selected(votes)[plain].mean() < 0.002


def test_small_galaxies_hide_their_lanes():
    config = only("early_type", dust_lane_fraction_early=1.0, seed=4)
    truth = draw_truth(config, 0, 200)
    small = truth["r_half_arcsec"].to_numpy() < np.median(truth["r_half_arcsec"].to_numpy())
    found = selected(volunteers_votes(config, truth))
    assert found[~small].mean() > found[small].mean() + 0.1


def test_tables_have_the_published_form(labelled):
    _, truth, votes = labelled
    table = gz2_table(truth, votes)
    assert table.schema.field("dr7objid").type == pa.int64()
    for answer in ANSWERS:
        for statistic in ("count", "weight", "fraction", "weighted_fraction", "debiased", "flag"):
            assert f"{answer.column}_{statistic}" in table.column_names
    assert {"Er", "Ei", "Ec"} <= set(table["gz2_class"].to_pylist())
    mapping = filename_mapping(truth)
    assert mapping.column_names == ["objid", "sample", "asset_id"]
    assert mapping["asset_id"].to_pylist() == list(range(1, 1501))


def test_a_tile_holds_its_catalogue(tile):
    config, made, opened = tile
    assert opened.data.shape == (3, 400, 400)
    cutouts = cut(opened, made.catalogue["ra"].to_numpy(), made.catalogue["dec"].to_numpy(), 64)
    assert cutouts.inside.all()
    assert made.catalogue["galaxy_id"].equals(made.truth["galaxy_id"])
    core = cutouts.gri[:, 1, 30:34, 30:34].mean(axis=(1, 2))
    rim = np.median(cutouts.gri[:, 1, :4], axis=(1, 2))
    assert (core > rim + 5 * mock_light.SKY_NOISE[1]).mean() > 0.95
    again = render_tile(config, 3)
    first, second = ([np.asarray(hdu.data) for hdu in list[Any](m.hdus)[1:]] for m in (made, again))
    np.testing.assert_array_equal(first, second)


def test_no_seam_shows_where_a_galaxys_stamp_ends():
    config = MockConfig(tile_size_px=400)
    rows = draw_truth(config, 0, 300).to_pylist()
    y, x = np.mgrid[:399, :399] - 199
    for row in sorted(rows, key=lambda row: row["r_half_arcsec"])[-8:]:
        sky = np.zeros((3, 400, 400), np.float32)
        mock._paint_galaxy(sky, config, row, 199.5, 199.5)
        steps = np.maximum(np.abs(np.diff(sky[1], axis=0))[:, 1:], np.abs(np.diff(sky[1], axis=1))[1:])
        reach_px = 0.8 * mock._STAMP_RADII * row["r_half_arcsec"] / config.pixel_scale_arcsec
        assert steps[np.hypot(x, y) > reach_px].max() < 0.5 * mock_light.SKY_NOISE[1], row["kind"]


def test_tile_cutouts_look_like_labelled_ones():
    config = MockConfig(seed=8, tile_size_px=400)
    made = [render_tile(config, index) for index in range(3)]
    from_tiles = []
    for one in made:
        buffer = BytesIO()
        one.hdus.writeto(buffer)
        cutouts = cut(
            open_tile(buffer.getvalue(), one.name),
            one.catalogue["ra"].to_numpy(),
            one.catalogue["dec"].to_numpy(),
            64,
        )
        from_tiles += [lupton_rgb(gri, config.rendering) for gri in cutouts.gri[cutouts.flags == 0]]
    rendered = [
        lupton_rgb(render_gri(config, row), config.rendering) for row in draw_truth(config, 0, 70).to_pylist()
    ]
    ours, theirs = brightness_profile(from_tiles), brightness_profile(rendered)
    np.testing.assert_allclose(ours, theirs, rtol=0.25, atol=2)


def brightness_profile(pictures):
    """Median over pictures of the mean level in rings, and of the sky's scatter; shape (5, 3)."""
    pictures = np.stack(pictures).astype(float)
    y, x = np.mgrid[:64, :64] - 31.5
    radius = np.hypot(x, y)
    rings = [(0, 3), (6, 8), (10, 13), (40, 50)]
    levels = [pictures[:, (radius >= low) & (radius < high)].mean(axis=1) for low, high in rings]
    scatter = pictures[:, radius > 38].std(axis=1)
    return np.stack([np.median(values, axis=0) for values in (*levels, scatter)])


@pytest.fixture(scope="module")
def cousins():
    shards = sorted((REAL / "gz5").glob("train-*.parquet"))
    if not shards:
        pytest.skip(f"no real galaxies at {REAL / 'gz5'}: set GALRAY_REAL_DATA")
    table = pq.read_table(shards[0], columns=["label", "image"])
    real, mock = {name: [] for name in CLASSES}, {name: [] for name in CLASSES}
    for label, data in zip(table["label"].to_pylist(), table["image"].to_pylist(), strict=True):
        if label in real and len(real[label]) < 60:
            real[label].append(resize(decode_rgb(data), 64))
    config = MockConfig(seed=11)
    for row in draw_truth(config, 0, 500).to_pylist():
        if row["label"] in mock and len(mock[row["label"]]) < 40:
            mock[row["label"]].append(decode_rgb(cutout_jpeg(config, row)))
    return real, mock


def test_mock_galaxies_are_cousins_of_real_ones(cousins):
    real, mock = cousins
    save_figure(real, mock, OUTPUT / "mock_beside_real.png")
    for label in CLASSES:
        assert min(len(real[label]), len(mock[label])) >= 15, label
        theirs, ours = brightness_profile(real[label]), brightness_profile(mock[label])
        ratio = ours / theirs
        assert np.abs(np.log(ratio[0])).max() < np.log(1.45), (label, "centre", ratio[0])
        assert np.abs(np.log(ratio[1:3])).max() < np.log(2.0), (label, "body", ratio[1:3])
        assert (np.abs(ours[3] - theirs[3]) < 5).all(), (label, "sky", ours[3], theirs[3])
        assert (ours[4] < 4 * theirs[4] + 2).all(), (label, "noise", ours[4], theirs[4])
        redness = [values[0, 0] / values[0, 2] for values in (ours, theirs)]
        assert redness[0] == pytest.approx(redness[1], rel=0.3), (label, "red to blue", redness)


def test_real_and_mock_order_the_colours_of_the_classes_alike(cousins):
    for pictures in cousins:
        blue = {c: np.divide(*brightness_profile(pictures[c])[1, [2, 0]]) for c in CLASSES}
        assert blue["spiral"] > 1.15 * blue["completely_round_smooth"]


def save_figure(real, mock, path):
    """Lay real galaxies (upper row of each pair) beside mock ones (lower row)."""
    columns, cell = 14, 96
    sheet = Image.new("RGB", (columns * cell, 2 * len(CLASSES) * cell))
    draw = ImageDraw.Draw(sheet)
    for k, label in enumerate(CLASSES):
        for half, (name, pictures) in enumerate((("real", real[label]), ("mock", mock[label]))):
            top = (2 * k + half) * cell
            for column, picture in enumerate(pictures[:columns]):
                sheet.paste(Image.fromarray(resize(picture, cell - 2)), (column * cell, top))
            draw.text((3, top + 2), f"{name} {label}", fill="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def test_contradictions_are_refused():
    with pytest.raises(ConfigError, match="shares"):
        MockConfig(**ONE_KIND)
    with pytest.raises(ConfigError, match="dust_lane_fraction_early"):
        MockConfig(dust_lane_fraction_early=1.5)
    with pytest.raises(ConfigError, match="bright to faint"):
        MockConfig(mag_r_range=(18.0, 15.0))
