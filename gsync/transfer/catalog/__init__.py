"""Catalogs of files: the kinds of catalog, publication in blocks, reports for AsyncStageOut."""
