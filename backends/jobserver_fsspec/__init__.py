"""Blobs and fetched files: in folders, on object stores, from the network."""

from jobserver_fsspec.blobs import FsspecBlobStore

__all__ = ["FsspecBlobStore"]
