"""Where gsync's own state lies on a node, which volumes there are, and in which format."""
