"""Delivery of data sets from a ready folder to their destination: units, checks, late files, nights, alerts."""
