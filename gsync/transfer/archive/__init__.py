"""Trees put away in a store whole and frozen, and got back: manifest, order of steps, backup."""
