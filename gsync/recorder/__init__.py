"""Records every change of a directory tree in changelogs, from kernel events and, after gaps, by comparison.

    detector    the interface of a detector, and its hints; fanotify and inotify are the two detectors
    recorder    one brick's recorder: looks at hinted names, updates the index, closes slices
    scan        compares a tree, or a part of it, with the index
    status      the recorder's published status, and how a worker talks to it
"""
