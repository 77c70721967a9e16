"""Scoring folders, archives, videos and watched folders."""
