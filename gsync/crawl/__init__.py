"""Which changes come next: past and live changelogs (feed), or a walk of the whole tree (hybrid)."""
