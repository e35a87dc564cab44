"""Candidates as a HATS catalogue, partitioned by HEALPix pixel, which LSDB opens and cross-matches."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc


def hats_files(table: pa.Table, name: str) -> dict[str, bytes]:
    """Encode a table of sources as a HATS catalogue.

    Parameters
    ----------
    table : pyarrow.Table
        With ``ra`` and ``dec``, degrees (J2000). Rows without a position, which have no place in HATS, and
        binary columns are left out.
    name : str
        Of the catalogue.

    Returns
    -------
    dict of str to bytes
        File contents by path below the catalogue's folder; empty where no row has a position.
    """
    from lsdb.loaders.dataframe.from_dataframe import from_dataframe  # an extra, galray[hats]

    placed = table.filter(pc.field("ra").is_valid() & pc.field("dec").is_valid())
    if not len(placed):
        return {}
    plain = [field.name for field in table.schema if not pa.types.is_binary(field.type)]
    rows = placed.select(plain).to_pandas(types_mapper=pd.ArrowDtype)
    catalogue = from_dataframe(
        rows, ra_column="ra", dec_column="dec", margin_threshold=None, catalog_name=name
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, name)
        catalogue.write_catalog(
            root, as_collection=False, create_per_partition_statistics=False, progress_bar=False
        )
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
