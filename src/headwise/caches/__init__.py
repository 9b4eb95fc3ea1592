"""Caches: prefixes shared by many prompts, and caches that hold only what a compression method keeps."""

from headwise.caches.groups import Window
from headwise.caches.kept_cache import KeptCache, compress
from headwise.caches.kept_layer import Compressor, Keep, View

__all__ = ["Compressor", "Keep", "KeptCache", "View", "Window", "compress"]
