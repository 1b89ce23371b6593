"""Blobs and fetched files: in folders, on object stores, from the network."""

from jobserver_fsspec.blobs import FsspecBlobStore
from jobserver_fsspec.fetcher import FsspecFetcher

__all__ = ["FsspecBlobStore", "FsspecFetcher"]
