"""Catalogues, images and tiles in; galaxy shards out."""
