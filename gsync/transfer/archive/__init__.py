"""Archives: a tree is frozen, stored whole and restored later. Holds the manifest, the order of steps, and backups."""
