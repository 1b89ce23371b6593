"""Uploaded code and data: archives, class paths, data files, and the blobs they are kept in."""
