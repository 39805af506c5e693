"""Catalogs that are told of files: what a catalog is, publication in blocks, reports for AsyncStageOut."""
