"""Tools for tests, tools and measurements: trees, images, hosts, sshd, clusters, runs of the real command."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
