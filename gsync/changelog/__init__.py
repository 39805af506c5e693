"""Changelogs in GlusterFS's own format and layout: records, writing, history, retention, archive.

A *ts* is in whole seconds since the epoch: CHANGELOG.<ts> holds the changes of the slice that ended then.
Every other time is in ns, so a stime t is served by the changelogs with ts * NS > t.
"""
