"""gsync keeps a second site in step with a first one, by following changelogs."""

__version__ = "0.2.0"
