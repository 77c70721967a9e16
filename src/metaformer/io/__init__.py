"""Bytes in and out: images, folders, archives, files that are written whole or not at all."""
