"""Data sets in the official layout: reading, checking, and preparing them for the graph."""

from popularity.dataset.ingestion import DatasetParams, Ingested, ingest

__all__ = ["DatasetParams", "Ingested", "ingest"]
