"""Blobs in directories and object stores, and files fetched from the network."""

from jobserver_fsspec.blobs import FsspecBlobStore
from jobserver_fsspec.fetcher import FsspecFetcher

__all__ = ["FsspecBlobStore", "FsspecFetcher"]
