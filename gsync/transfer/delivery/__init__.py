"""Data sets delivered from a ready folder to their destination: units, checks, late files, nights, alerts."""
